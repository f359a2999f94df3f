import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ph_l2o.inner import run, value_and_gradient
from ph_l2o.keys import ProblemKeys
from ph_l2o.optimizers import SGD
from ph_l2o.tasks import Landscape
from ph_l2o.tasks.landscape import FUNCTIONS, LandscapeProblem

F64 = torch.float64
ALL_OPTIONS = {"rotate": True, "shift": 1.0, "log_scale": 0.7, "log_height": 2.0, "noise": 0.1}


def keys(indices=range(3), *, seed=0, split="train", episode=0) -> ProblemKeys:
    return ProblemKeys(seed, split, episode, indices)


def draw(kind: str, dim: int = 5, indices=range(3), *, dtype=F64, where=None, **arguments) -> LandscapeProblem:
    return Landscape(kind, dim, **arguments).sample(keys(indices, **(where or {})), dtype=dtype)


def at(problem: LandscapeProblem, x: Tensor) -> Tensor:
    flat = x.to(problem.params.flat).expand_as(problem.params.flat)
    return problem.loss(problem.params.like(flat), {}, None)[0]


def literal(kind: str, x: np.ndarray, curvatures: np.ndarray) -> float:
    """The functions as they are in the literature, each with its minimum moved to 0."""
    n = len(x)
    if kind == "rosenbrock":
        return sum(100 * (x[i + 1] - x[i] ** 2) ** 2 + (1 - x[i]) ** 2 for i in range(n - 1))
    if kind == "rastrigin":
        return 10 * n + sum(v**2 - 10 * math.cos(2 * math.pi * v) for v in x)
    if kind == "ackley":
        root = math.sqrt(sum(v**2 for v in x) / n)
        return 20 + math.e - 20 * math.exp(-0.2 * root) - math.exp(sum(math.cos(2 * math.pi * v) for v in x) / n)
    if kind == "styblinski_tang":
        return sum(0.5 * (v**4 - 16 * v**2 + 5 * v) + 39.16616570377142 for v in x)
    if kind == "levy":
        w = [1 + (v - 1) / 4 for v in x]
        middle = sum((v - 1) ** 2 * (1 + 10 * math.sin(math.pi * v + 1) ** 2) for v in w[:-1])
        last = (w[-1] - 1) ** 2 * (1 + math.sin(2 * math.pi * w[-1]) ** 2)
        return math.sin(math.pi * w[0]) ** 2 + middle + last
    return sum(0.5 * c * v**2 + 0.25 * v**4 + 0.25 * min(c, 0) ** 2 for v, c in zip(x, curvatures, strict=True))


@pytest.mark.parametrize("dim", [2, 7])
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_losses_are_those_of_the_literature(kind, dim):
    problem = draw(kind, dim)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, dim, generator=generator, dtype=F64)
    z = (problem.rotation @ x[..., None])[..., 0] if problem.rotation is not None else x
    expected = [literal(kind, r.numpy(), c.numpy()) for r, c in zip(z, problem.curvatures, strict=True)]
    atol = 20 * 0.2 * 1e-3 if kind == "ackley" else 1e-12  # Ackley's root is smoothed
    torch.testing.assert_close(at(problem, x), torch.tensor(expected, dtype=F64), rtol=1e-9, atol=atol)


def test_rastrigin_is_the_plain_formula_from_a_start_in_its_box():
    problem = draw("rastrigin", 4, range(200))
    x = problem.params["x"]
    assert x.abs().max() <= 5.12 and x.abs().max() > 5 and abs(x.mean()) < 0.5
    expected = 40 + (x.square() - 10 * torch.cos(2 * math.pi * x)).sum(1)
    torch.testing.assert_close(problem.loss(problem.params, {}, None)[0], expected)


MINIMA = {"rosenbrock": 1.0, "rastrigin": 0.0, "ackley": 0.0, "styblinski_tang": -2.903534, "levy": 1.0}


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("kind", MINIMA)
def test_minimum_is_zero_at_the_known_place_and_nothing_is_below(kind, dtype):
    problem = draw(kind, 4, dtype=dtype)
    best = torch.full((4,), MINIMA[kind], dtype=dtype)
    assert (at(problem, best) >= 0).all() and (at(problem, best) < 1e-9).all()
    generator = torch.Generator().manual_seed(0)
    for size in (1e-6, 1e-3, 1.0):
        assert all((at(problem, best + size * torch.randn(4, generator=generator)) >= 0).all() for _ in range(50))


def test_the_saddle_has_a_saddle_at_zero_and_minima_of_zero():
    problem = draw("saddle", 6, range(20), curvature=50.0)
    rotation, curvatures = problem.rotation, problem.curvatures
    assert rotation is not None
    torch.testing.assert_close(rotation @ rotation.transpose(1, 2), torch.eye(6, dtype=F64).expand(20, 6, 6))
    assert (curvatures[:, 0] < 0).all() and 0.3 < (curvatures > 0).double().mean() < 0.6
    assert curvatures.abs().max() <= 1 and curvatures.abs().min() >= 1 / 50 and curvatures.abs().min() < 0.03
    z = (-curvatures.clamp(max=0)).sqrt()
    best = (rotation.transpose(1, 2) @ z[..., None])[..., 0]
    torch.testing.assert_close(at(problem, best), torch.zeros(20, dtype=F64), atol=1e-20, rtol=0)
    middle = problem.params.like(torch.zeros_like(problem.params.flat))
    _, gradient, _ = value_and_gradient(problem, middle, {}, None)
    assert (gradient.flat == 0).all()
    hessians = torch.stack(
        [torch.autograd.functional.hessian(lambda x, k=k: at(problem, x)[k], middle.flat[k]) for k in range(3)]
    )
    torch.testing.assert_close(torch.linalg.eigvalsh(hessians), curvatures[:3].sort(1).values)


@pytest.mark.parametrize("options", [{}, ALL_OPTIONS], ids=["plain", "all options"])
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_gradients_are_finite_differences(kind, options):
    problem = draw(kind, 4, **options)
    batch = next(problem.batches(3, 1))
    loss, gradient, _ = value_and_gradient(problem, problem.params, {}, batch)
    eps = 1e-6
    for k in range(4):
        step = eps * torch.eye(4, dtype=F64)[k]
        up, down = (problem.loss(problem.params.like(problem.params.flat + s * step), {}, batch)[0] for s in (1, -1))
        torch.testing.assert_close(
            gradient.flat[:, k], (up - down) / (2 * eps), rtol=1e-5, atol=1e-6 * float(loss.max())
        )
    flat = problem.params.flat.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda x: problem.loss(problem.params.like(x), {}, batch)[0].sum(), flat, rtol=1e-2
    )


def test_ackley_has_derivatives_at_its_minimum():
    problem = draw("ackley", 3)
    zero = torch.zeros(3, 3, dtype=F64, requires_grad=True)
    (first,) = torch.autograd.grad(problem.loss(problem.params.like(zero), {}, None)[0].sum(), zero, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), zero)
    assert (first == 0).all() and second.isfinite().all()


def test_options_change_coordinates_and_units_alone():
    """The start's loss stays in the same range: the box of starts moves along."""
    plain = draw("styblinski_tang", 6)
    moved = draw("styblinski_tang", 6, rotate=True, shift=2.0, log_scale=1.0)
    torch.testing.assert_close(at(moved, moved.params.flat), at(plain, plain.params.flat))
    assert moved.rotation is not None and not torch.allclose(moved.params.flat, plain.params.flat)
    scale = moved.scale
    assert (scale.log().abs() <= 1).all() and len(scale.unique()) == 3
    higher = draw("styblinski_tang", 6, log_height=2.0)
    ratio = at(higher, plain.params.flat) / at(plain, plain.params.flat)
    torch.testing.assert_close(ratio, higher.height)
    assert (ratio.log().abs() <= 2).all() and len(ratio.unique()) == 3


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_draws_depend_on_the_key_alone(kind):
    whole, part = draw(kind, 5, range(6), **ALL_OPTIONS), draw(kind, 5, [5, 1, 5], **ALL_OPTIONS)
    assert torch.equal(part.params.flat, whole.params.flat[[5, 1, 5]])
    batches, again = list(whole.batches(0, 8)), list(part.batches(5, 3))
    losses = run(SGD(lr=1e-3).double(), whole, 4)[1]
    torch.testing.assert_close(run(SGD(lr=1e-3).double(), part, 4)[1], losses[:, [5, 1, 5]])
    assert all(torch.equal(a[[5, 1, 5]], b) for a, b in zip(batches[5:], again, strict=True))
    finals = list(whole.final_batches(3))
    assert not any(torch.equal(a, b) for a in batches for b in finals)
    starts = [draw(kind, where=w).params.flat for w in ({}, {"seed": 1}, {"split": "val"}, {"episode": 1})]
    assert len(torch.cat(starts).unique(dim=0)) == 12


def test_noise_moves_the_place_not_the_value():
    quiet, noisy = draw("rastrigin"), draw("rastrigin", noise=0.2)
    assert not quiet.stochastic and list(quiet.batches(0, 2)) == [None, None] and noisy.stochastic
    batch = next(noisy.batches(0, 1))
    assert batch.shape == (3, 5)
    losses = noisy.loss(noisy.params, {}, batch)[0]
    torch.testing.assert_close(losses, at(quiet, quiet.params.flat + batch))
    drawn = torch.stack(list(noisy.batches(0, 200)))
    assert abs(drawn.std() - 0.2) < 0.01 and abs(drawn.mean()) < 0.01


def test_spec():
    variants = [{}, {"kind": "ackley"}, {"dim": 3}, {"rotate": True}, {"shift": 1.0}, {"start": 1.0}, {"noise": 0.1}]
    specs = [json.dumps(Landscape(**v).spec(), sort_keys=True) for v in variants]
    assert len(set(specs)) == len(variants)
    assert Landscape("ackley").name == "ackley" and Landscape("ackley", name="other").name == "other"


NAMES = "rosenbrock, rastrigin, ackley, styblinski_tang, levy, saddle"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "rastrign"}, f"task.kind=rastrign: must be one of {NAMES}; did you mean rastrigin?"),
        ({"dim": 0}, "task.dim=0: must be >= 1 (number of coordinates of rastrigin)"),
        (
            {"kind": "rosenbrock", "dim": 1},
            "task.dim=1: must be >= 2 (number of coordinates of rosenbrock)",
        ),
        ({"start": 0.0}, "task.start=0.0: must be > 0 and finite"),
        ({"shift": -1.0}, "task.shift=-1.0: must be >= 0 and finite"),
        ({"log_scale": math.nan}, "task.log_scale=nan: must be >= 0 and finite"),
        ({"log_height": math.inf}, "task.log_height=inf: must be >= 0 and finite"),
        ({"noise": -0.1}, "task.noise=-0.1: must be >= 0 and finite"),
        ({"curvature": 0.5}, "task.curvature=0.5: must be >= 1 and finite"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError) as error:
        Landscape(**arguments)
    assert str(error.value) == message
