import math

import pytest
import torch
from torch import Tensor

from ph_l2o.optimizers import Adam, AdamW, Muon
from ph_l2o.optimizers.matrices import matrix_shapes
from ph_l2o.optimizers.muon import orthogonalized
from ph_l2o.params import Layout, Params

MATRICES = Layout(("tall", "wide", "square"), ((7, 3), (2, 5), (4, 4)))
MIXED = Layout(("weight", "bias", "kernel", "scale"), ((4, 3), (3,), (3, 2, 2, 1), ()))
pytestmark = pytest.mark.usefixtures("float64")
STEPS = 25


def problems(layout: Layout, num_problems: int = 3) -> tuple[Params, Tensor]:
    """Start, and where the gradient θ - target is 0."""
    torch.manual_seed(0)
    return Params(torch.randn(num_problems, layout.numel), layout), 5 * torch.randn(num_problems, layout.numel)


def run(optimizer, start: Params, target: Tensor, steps: int = STEPS) -> Tensor:
    params, state = start, optimizer.init(start)
    with torch.no_grad():
        for _ in range(steps):
            params, state = optimizer.update(params, params.like(params.flat - target), None, state)
    return params.flat


def run_torch(start: Params, target: Tensor, steps: int = STEPS, **settings) -> Tensor:
    rows = []
    for i in range(start.num_problems):
        tensors = [t[i].clone().requires_grad_() for t in start.tensors().values()]
        targets = [t[i] for t in start.like(target).tensors().values()]
        optimizer = torch.optim.Muon(tensors, **settings)
        for _ in range(steps):
            for t, goal in zip(tensors, targets, strict=True):
                t.grad = t.detach() - goal
            optimizer.step()
        rows.append(torch.cat([t.detach().flatten() for t in tensors]))
    return torch.stack(rows)


SETTINGS = [
    {"adjust_lr_fn": "original"},
    {"adjust_lr_fn": "original", "momentum": 0.8, "weight_decay": 0.3},
    {"adjust_lr_fn": "match_rms_adamw", "nesterov": False},
    {"adjust_lr_fn": "spectral_unclamped", "momentum": 0.0, "weight_decay": 0.1},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_matches_torch_without_its_rounding(settings, monkeypatch):
    # torch's own code in float64 throughout: all that is taken away is its conversion to bfloat16.
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    start, target = problems(MATRICES)
    settings = {"lr": 0.05, "weight_decay": 0.0, **settings}
    ours = run(Muon(**settings), start, target) - start.flat
    theirs = run_torch(start, target, **settings) - start.flat
    assert theirs.abs().max() > 0.5
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_matches_torch_in_bfloat16(settings, dtype):
    start, target = problems(MATRICES)
    start, target = start.like(start.flat.to(dtype)), target.to(dtype)
    settings = {"lr": 0.05, "weight_decay": 0.0, **settings}
    theirs = run_torch(start, target, steps=5, **settings) - start.flat
    ours = run(Muon(**settings, newton_schulz="bfloat16").to(dtype), start, target, steps=5) - start.flat
    plain = run(Muon(**settings).to(dtype), start, target, steps=5) - start.flat
    assert ours.dtype == dtype
    scale = theirs.abs().max()
    torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=0.004)  # 8 bits
    assert (plain - theirs).abs().max() < 0.04 * scale
    assert (plain - theirs).norm() > 3 * (ours - theirs).norm()


def test_none_has_no_factor():
    layout = Layout(("wide", "square"), ((2, 5), (4, 4)))  # for which `original` has none either
    start, target = problems(layout)
    assert torch.equal(run(Muon(), start, target), run(Muon(adjust_lr_fn="original"), start, target))
    tall, target = problems(Layout(("tall",), ((9, 1),)))
    moved = (run(Muon(weight_decay=0), tall, target, 1) - tall.flat) * 3
    original = run(Muon(weight_decay=0, adjust_lr_fn="original"), tall, target, 1) - tall.flat
    torch.testing.assert_close(moved, original)


def test_vectors_get_adamw_and_kernels_are_matrices():
    assert matrix_shapes(MIXED) == ((4, 3), None, (3, 4), None)
    start, target = problems(MIXED)
    ours = run(Muon(lr=0.05, weight_decay=0.2, beta2=0.9), start, target)
    flattened = Layout(("weight", "kernel"), ((4, 3), (3, 4)))
    is_matrix = MIXED.expand(torch.tensor([[1.0, 0, 1, 0]]))[0].bool()
    part = Params(start.flat[:, is_matrix], flattened)
    matrices = run(Muon(lr=0.05, weight_decay=0.2), part, target[:, is_matrix])
    torch.testing.assert_close(ours[:, is_matrix], matrices, rtol=1e-12, atol=0)
    # Weight decay is in units of `lr` for all tensors.
    adam = AdamW(lr=0.015, beta2=0.9, weight_decay=0.2 / 0.3)
    torch.testing.assert_close(ours[:, ~is_matrix], run(adam, start, target)[:, ~is_matrix], rtol=1e-12, atol=0)


def test_without_matrices_it_is_adam():
    start, target = problems(Layout(("theta",), ((6,),)))
    ours = run(Muon(lr=0.1, adam_lr_ratio=0.5, beta2=0.99), start, target)
    torch.testing.assert_close(ours, run(Adam(lr=0.05, beta2=0.99), start, target), rtol=1e-12, atol=0)


def test_orthogonalized():
    torch.manual_seed(1)
    matrices = torch.randn(20, 6, 4)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    projected = left.mT @ orthogonalized(matrices) @ right.mT
    diagonal = projected.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(projected, torch.diag_embed(diagonal), rtol=0, atol=1e-10)
    large = values > 0.02 * matrices.norm(dim=(1, 2))[:, None]
    assert diagonal[large].min() > 0.65 and diagonal.max() < 1.25
    torch.testing.assert_close(orthogonalized(matrices.mT), orthogonalized(matrices).mT)
    assert torch.equal(orthogonalized(torch.zeros(1, 2, 3)), torch.zeros(1, 2, 3))


def test_one_batch_with_different_hyperparameters():
    start, target = problems(MIXED)
    values = {n: torch.tensor([0.1, 0.3, 0.02]) for n in Muon().hyperparameters}
    together = run(Muon().with_hyperparameters(**values), start, target, steps=10)
    for i in range(3):
        alone = Muon(**{n: v[i].item() for n, v in values.items()})
        expected = run(alone, Params(start.flat[i : i + 1], MIXED), target[i : i + 1], steps=10)
        torch.testing.assert_close(together[i : i + 1], expected, rtol=1e-10, atol=1e-12)


def test_update_is_pure_and_differentiable():
    start, target = problems(MIXED)
    optimizer = Muon(weight_decay=0.1)
    target[0] = start.flat[0]  # a gradient of 0
    grads = start.like(start.flat - target)
    params, state = optimizer.update(start, grads, None, optimizer.init(start))
    grads = start.like(params.flat - 2 * target + start.flat)  # others, since averages of a constant depend on nothing
    before = [t.clone() for t in (params.flat, *state)]
    first, second = (optimizer.update(params, grads, None, state) for _ in range(2))
    assert torch.equal(first[0].flat, second[0].flat)
    assert all(torch.equal(a, b) for a, b in zip(before, (params.flat, *state), strict=True))
    assert all(s.shape[0] == start.num_problems for s in first[1])
    first[0].flat.square().sum().backward()
    for name, p in optimizer.named_parameters():
        assert p.grad is not None and p.grad.isfinite() and p.grad != 0, name


def test_arguments_out_of_range():
    for name, value, allowed in [
        ("lr", 0.0, "must be > 0"),
        ("momentum", 1.0, "must be in [0, 1)"),
        ("adam_lr_ratio", -1.0, "must be >= 0"),
        ("adjust_lr_fn", "rms", "must be one of none, match_rms_adamw, original, spectral_unclamped"),
        ("newton_schulz", "half", "must be one of same, bfloat16"),
    ]:
        with pytest.raises(ValueError) as error:
            Muon(**{name: value})
        assert str(error.value) == f"optimizer.{name}={value}: {allowed}"
    assert len(Muon.grid["lr"]) >= 8 and math.isclose(Muon(lr=0.3).hyperparameters["lr"].item(), 0.3)
