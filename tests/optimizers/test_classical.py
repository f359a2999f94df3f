import functools
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ph_l2o.optimizers import SGD, Adam, AdamW, ClassicalOptimizer, Momentum, Nesterov, RMSprop
from ph_l2o.params import Layout, Params

ALL = [SGD, Momentum, Nesterov, RMSprop, Adam, AdamW]
LAYOUTS = [
    Layout(("theta",), ((7,),)),
    Layout(("weight", "bias", "scale"), ((3, 2), (3,), ())),
]
STEPS = 100

torch_sgd = torch.optim.SGD
# Rates so low, or eps so large, that nothing oscillates about a minimum, where rounding errors would grow.
PAIRS: list[tuple[type[ClassicalOptimizer], dict, Callable[..., torch.optim.Optimizer]]] = [
    (SGD, {"lr": 0.02}, functools.partial(torch_sgd, lr=0.02)),
    (SGD, {"lr": 0.02, "weight_decay": 0.3}, functools.partial(torch_sgd, lr=0.02, weight_decay=0.3)),
    (Momentum, {"lr": 0.01}, functools.partial(torch_sgd, lr=0.01, momentum=0.9)),
    (Momentum, {"lr": 0.01, "momentum": 0.0}, functools.partial(torch_sgd, lr=0.01)),
    (
        Momentum,
        {"lr": 0.01, "momentum": 0.8, "weight_decay": 0.3},
        functools.partial(torch_sgd, lr=0.01, momentum=0.8, weight_decay=0.3),
    ),
    (
        Nesterov,
        {"lr": 0.01, "momentum": 0.95, "weight_decay": 0.1},
        functools.partial(torch_sgd, lr=0.01, momentum=0.95, weight_decay=0.1, nesterov=True),
    ),
    (RMSprop, {"lr": 0.001}, functools.partial(torch.optim.RMSprop, lr=0.001)),
    (
        RMSprop,
        {"lr": 0.001, "alpha": 0.9, "eps": 0.1, "weight_decay": 0.1},
        functools.partial(torch.optim.RMSprop, lr=0.001, alpha=0.9, eps=0.1, weight_decay=0.1),
    ),
    (Adam, {"lr": 0.03}, functools.partial(torch.optim.Adam, lr=0.03)),
    (
        Adam,
        {"lr": 0.001, "beta1": 0.0, "beta2": 0.9, "eps": 0.1, "weight_decay": 0.2},
        functools.partial(torch.optim.Adam, lr=0.001, betas=(0.0, 0.9), eps=0.1, weight_decay=0.2),
    ),
    (AdamW, {"lr": 0.03}, functools.partial(torch.optim.AdamW, lr=0.03, weight_decay=0.01)),
    (
        AdamW,
        {"lr": 0.03, "weight_decay": 0.5},
        functools.partial(torch.optim.AdamW, lr=0.03, weight_decay=0.5),
    ),
]


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def quadratics(layout: Layout, num_problems: int = 3) -> tuple[Params, Tensor, Tensor]:
    """Start, and gradients A_i θ - b_i, another A_i and b_i in each row."""
    torch.manual_seed(1)
    n = layout.numel
    root = torch.randn(num_problems, n, n) * torch.tensor([0.3, 1.0, 2.0])[:num_problems, None, None]
    return Params(torch.randn(num_problems, n), layout), root @ root.mT, torch.randn(num_problems, n)


def run(optimizer: ClassicalOptimizer, start: Params, matrix: Tensor, offset: Tensor, steps: int = STEPS) -> Tensor:
    params, state = start, optimizer.init(start)
    with torch.no_grad():
        for _ in range(steps):
            grads = params.like((matrix @ params.flat[..., None])[..., 0] - offset)
            params, state = optimizer.update(params, grads, None, state)
    return params.flat


def run_torch(factory: Callable, start: Params, matrix: Tensor, offset: Tensor) -> Tensor:
    rows = []
    for i in range(start.num_problems):
        tensors = [t[i].clone().requires_grad_() for t in start.tensors().values()]
        optimizer = factory(tensors)
        for _ in range(STEPS):
            flat = torch.cat([t.detach().flatten() for t in tensors])
            grads = (matrix[i] @ flat - offset[i]).split(start.layout.sizes)
            for t, g in zip(tensors, grads, strict=True):
                t.grad = g.view_as(t)
            optimizer.step()
        rows.append(torch.cat([t.detach().flatten() for t in tensors]))
    return torch.stack(rows)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["one", "several"])
@pytest.mark.parametrize(("cls", "arguments", "factory"), PAIRS, ids=lambda x: getattr(x, "__name__", ""))
def test_classic_matches_torch_optim(cls, arguments, factory, layout):
    start, matrix, offset = quadratics(layout)
    ours = run(cls(**arguments), start, matrix, offset) - start.flat
    theirs = run_torch(factory, start, matrix, offset) - start.flat
    assert theirs.abs().min() > 1e-4
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("cls", ALL)
def test_values_are_exact_in_float64(cls):
    optimizer = cls()
    given = {name: 0.37 * value.item() for name, value in optimizer.hyperparameters.items()}
    for name, value in cls(**given).hyperparameters.items():
        assert value.item() == pytest.approx(given[name], rel=1e-12, abs=1e-17)
    later = optimizer.float().double().with_hyperparameters(**given).hyperparameters
    assert later["lr"].item() == pytest.approx(given["lr"], rel=1e-12)


@pytest.mark.parametrize("cls", ALL)
def test_one_batch_with_different_hyperparameters(cls):
    start, matrix, offset = quadratics(LAYOUTS[1])
    names = [n for n in cls().hyperparameters if n not in ("eps",)]
    values = {n: torch.tensor([0.01, 0.2, 0.05] if n != "beta2" else [0.9, 0.99, 0.999]) for n in names}
    batched = cls().with_hyperparameters(**values)
    assert all(batched.hyperparameters[n].shape == (3, 1) for n in names)
    together = run(batched, start, matrix, offset, steps=10)
    for i in range(3):
        alone = cls(**{n: v[i].item() for n, v in values.items()})
        one = Params(start.flat[i : i + 1], start.layout)
        expected = run(alone, one, matrix[i : i + 1], offset[i : i + 1], steps=10)
        torch.testing.assert_close(together[i : i + 1], expected, rtol=1e-12, atol=0)


def test_with_hyperparameters_leaves_the_original_alone():
    optimizer = Adam(lr=0.1)
    copy = optimizer.with_hyperparameters(lr=0.2, eps=1e-3, beta1=0.0)
    assert optimizer.hyperparameters["lr"].item() == pytest.approx(0.1)
    assert optimizer.hyperparameters["eps"].item() == pytest.approx(1e-8)
    assert copy.hyperparameters["lr"].item() == pytest.approx(0.2)
    assert copy.hyperparameters["eps"].item() == pytest.approx(1e-3)
    assert copy.hyperparameters["beta1"].item() == pytest.approx(0, abs=1e-17)


def test_meta_parameters_are_finite_and_differentiable():
    for cls in ALL:
        zero_decays = {n: 0.0 for n in cls().hyperparameters if n not in ("lr", "eps")}
        for optimizer in (cls(), cls(**zero_decays)):
            start = Params(torch.ones(2, 3), Layout(("theta",), ((3,),)))
            grad = torch.tensor([[1.0, -2.0, 0.0], [0.5, 0.0, 0.0]], requires_grad=True)  # some always 0
            params, state = start, optimizer.init(start)
            for _ in range(3):
                params, state = optimizer.update(params, params.like(grad * params.flat), None, state)
            params.flat.square().sum().backward()
            assert grad.grad is not None and grad.grad.isfinite().all()
            for p in optimizer.parameters():
                assert p.isfinite().all() and p.grad is not None and p.grad.isfinite().all()


@pytest.mark.parametrize("cls", ALL)
def test_grid(cls):
    assert len(cls.grid["lr"]) >= 8
    assert all(high / low == pytest.approx(math.sqrt(10)) for low, high in itertools.pairwise(cls.grid["lr"]))
    for name, values in cls.grid.items():
        for value in values:
            assert cls(**{name: value}).hyperparameters[name].item() == pytest.approx(value)


@pytest.mark.parametrize(
    ("cls", "name", "value", "allowed"),
    [
        (SGD, "lr", -1, "must be > 0"),
        (SGD, "lr", 0.0, "must be > 0"),
        (Adam, "lr", math.nan, "must be > 0, and finite"),
        (Adam, "lr", math.inf, "must be > 0, and finite"),
        (Momentum, "momentum", 1.0, "must be in [0, 1)"),
        (Nesterov, "momentum", -0.1, "must be in [0, 1)"),
        (RMSprop, "alpha", 2, "must be in [0, 1)"),
        (Adam, "beta2", 1.5, "must be in [0, 1)"),
        (Adam, "eps", -1e-8, "must be >= 0"),
        (AdamW, "weight_decay", -0.1, "must be >= 0"),
    ],
)
def test_arguments_out_of_range(cls, name, value, allowed):
    for make in (lambda: cls(**{name: value}), lambda: cls().with_hyperparameters(**{name: value})):
        with pytest.raises(ValueError) as error:
            make()
        assert str(error.value) == f"optimizer.{name}={value}: {allowed}"


def test_bad_values_for_a_grid():
    with pytest.raises(ValueError, match=r"optimizer\.lr=-2\.0: must be > 0"):
        SGD().with_hyperparameters(lr=torch.tensor([1.0, -2.0]))
    with pytest.raises(ValueError, match=r"optimizer\.beta1: unknown; SGD has lr, weight_decay"):
        SGD().with_hyperparameters(beta1=0.5)


@pytest.mark.parametrize("cls", ALL)
def test_update_is_pure(cls):
    optimizer = cls(weight_decay=0.1)
    start, _, offset = quadratics(LAYOUTS[1])
    state = optimizer.init(start)
    grads = start.like(offset)
    params, state = optimizer.update(start, grads, None, state)
    before = [t.clone() for t in (params.flat, grads.flat, *state)]
    first, second = (optimizer.update(params, grads, None, state) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(before, (params.flat, grads.flat, *state), strict=True))
    assert torch.equal(first[0].flat, second[0].flat)
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))
    assert all(s.shape[0] == start.num_problems for s in first[1])
