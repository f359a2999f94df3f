"""The coordinatewise MLP against its formulas, one coordinate at a time, in plain numbers."""

import math

import pytest
import torch
from test_lstm import params_of
from torch import Tensor
from torch.nn import functional

from ph_l2o.inner import run
from ph_l2o.keys import ProblemKeys
from ph_l2o.optim import from_learned
from ph_l2o.optimizers import CoordinatewiseMLP
from ph_l2o.optimizers import coordinatewise_mlp as module
from ph_l2o.params import Layout, Params
from ph_l2o.tasks import LogisticRegression, Quadratic

STEPS = 5
SMALL = {"hidden_size": 3, "num_layers": 1, "momentum_decays": [0.0], "rms_decays": [0.3], "exponent_scale": 0.0}


def rms(values: list[float]) -> float:
    return math.sqrt(sum(x * x for x in values) / len(values))


def reference(optimizer: CoordinatewiseMLP, params: Params, grads: list[Tensor]) -> list[Tensor]:
    """The class's text, literally: a loop over problems, tensors and coordinates."""
    theta = [{name: list(map(float, x[b].flatten())) for name, x in params.items()} for b in range(params.num_problems)]
    memory = {}
    path = []
    for k, grad in enumerate(grads):
        for b, tensors in enumerate(theta):
            for name, row in tensors.items():
                g = list(map(float, params.like(grad)[name][b].flatten()))
                row[:] = one_tensor(optimizer, row, g, k, memory.setdefault((b, name), {}))
        path.append(
            torch.tensor([[x for row in tensors.values() for x in row] for tensors in theta], dtype=params.flat.dtype)
        )
    return path


def one_tensor(optimizer, row, g, k, memory):
    def averages(decays, new, kind):
        found = []
        for decay in decays:
            old = memory.get((kind, decay), [0.0] * len(new))
            memory[kind, decay] = [decay * o + (1 - decay) * n for o, n in zip(old, new, strict=True)]
            found.append([x / (1 - decay ** (k + 1)) for x in memory[kind, decay]])
        return found

    momenta = averages(optimizer.momentum_decays, g, "m")
    roots = [[math.sqrt(v) for v in vs] for vs in averages(optimizer.rms_decays, [x * x for x in g], "v")]
    eps, new = optimizer.eps, []
    for i, theta in enumerate(row):
        features = [x[i] / (rms(x) + eps) for x in (g, *momenta, row)]
        sizes = [s[i] / (rms(s) + eps) for s in roots]
        features += [*sizes, *(1 / (r + 0.1) for r in sizes)]
        features += [x[i] / (s[i] + eps) for s in roots for x in (g, *momenta)]
        features += [math.tanh(k / 10 ** (j // 2) / (3 if j % 2 else 1) - 1) for j in range(11)]
        x = torch.tensor(features, dtype=torch.float64)
        for j, layer in enumerate(optimizer.layers):
            x = functional.linear(functional.relu(x) if j else x, layer.weight, layer.bias)
        step = optimizer.output_scale * x[0].item() * math.exp(optimizer.exponent_scale * x[1].item())
        new.append(theta - step if any(s[i] > 0 for s in roots) else theta)
    return new


def path_of(optimizer: CoordinatewiseMLP, params: Params, grads: list[Tensor]) -> list[Tensor]:
    state, new, path = optimizer.init(params), params, []
    for grad in grads:
        new, state = optimizer.update(new, new.like(grad), None, state)
        path.append(new.flat)
    return path


def gradients(params: Params) -> list[Tensor]:
    return [torch.randn_like(params.flat) * 10 ** torch.randn_like(params.flat) for _ in range(STEPS)]


@pytest.mark.parametrize("tile", [16384, 16])  # all at once; several tiles, the last of them shorter
@pytest.mark.parametrize("arguments", [{}, SMALL])
def test_matches_the_formulas(arguments, tile, monkeypatch):
    monkeypatch.setattr(module, "_TILE", tile)
    torch.manual_seed(0)
    optimizer = CoordinatewiseMLP(**{"output_scale": 0.3, "eps": 1e-3, **arguments}).double()
    params = params_of(3, 20)
    grads = gradients(params)
    grads[0][:, 2:4] = grads[1][:, 3] = 0.0
    for mine, wanted in zip(path_of(optimizer, params, grads), reference(optimizer, params, grads), strict=True):
        torch.testing.assert_close(mine - params.flat, wanted - params.flat, rtol=1e-10, atol=1e-13)


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    optimizer, params = CoordinatewiseMLP(hidden_size=4).double(), params_of(2, 8)
    grads = gradients(params)

    def end(*inputs: Tensor) -> Tensor:
        return path_of(optimizer, params.like(inputs[0]), list(inputs[1:]))[-1]

    inputs = [x.requires_grad_() for x in (params.flat, *grads)]
    assert torch.autograd.gradcheck(end, inputs, eps=1e-7, atol=1e-5, rtol=1e-4)


def test_coordinates_may_be_permuted_within_their_tensors():
    torch.manual_seed(0)
    optimizer, params = CoordinatewiseMLP().double(), params_of(2, 12)
    order = torch.cat([torch.randperm(9), 9 + torch.randperm(3)])
    grads = gradients(params)
    expected = path_of(optimizer, params, grads)[-1][:, order]
    found = path_of(optimizer, params.like(params.flat[:, order]), [g[:, order] for g in grads])[-1]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    one = Params(params.flat, Layout(("c",), ((12,),)))  # each tensor has a scale of its own
    assert not torch.allclose(path_of(optimizer, one, grads)[-1][:, order], expected)


def test_units_of_the_loss_and_of_the_parameters():
    """Neither is seen; the step is in the units of `output_scale`."""
    torch.manual_seed(0)
    optimizer, params = CoordinatewiseMLP(eps=1e-30).double(), params_of(2, 20)
    grads = gradients(params)
    steps = path_of(optimizer, params, grads)[0] - params.flat
    torch.testing.assert_close(path_of(optimizer, params, [1e6 * g for g in grads])[0] - params.flat, steps)
    torch.testing.assert_close(path_of(optimizer, params.like(5 * params.flat), grads)[0] - 5 * params.flat, steps)
    scaled = CoordinatewiseMLP(eps=1e-30, output_scale=0.2).double()
    scaled.load_state_dict(optimizer.state_dict())
    torch.testing.assert_close(path_of(scaled, params, grads)[0] - params.flat, 2 * steps)


def test_without_any_gradient_nothing_moves_and_nothing_breaks():
    torch.manual_seed(0)
    optimizer, params = CoordinatewiseMLP(), params_of(2, 20, torch.float32)
    params = params.like(torch.zeros_like(params.flat))
    grad = torch.zeros_like(params.flat)
    grad[1, :3] = 1.0
    start = grad.clone().requires_grad_()
    path = path_of(optimizer, params, [start, 0 * grad, 1e15 * grad])
    for new in path:
        assert torch.equal(new != 0, grad != 0) and new.isfinite().all()
    path[-1].sum().backward()
    assert start.grad is not None and start.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in optimizer.parameters())


def test_drop_in_takes_the_same_steps():
    torch.manual_seed(0)
    learned = CoordinatewiseMLP()
    tensors = [torch.randn(shape).requires_grad_() for shape in ((6, 5), (5,), ())]
    params = Params.from_tensors({str(k): x[None].detach() for k, x in enumerate(tensors)})
    grads = [[torch.randn_like(x) for x in tensors] for _ in range(STEPS)]
    rows = [torch.cat([g.flatten() for g in step])[None] for step in grads]
    optimizer = from_learned(learned)(tensors)
    for step in grads:
        for x, grad in zip(tensors, step, strict=True):
            x.grad = grad
        optimizer.step()
    found = torch.cat([x.detach().flatten() for x in tensors])[None]
    torch.testing.assert_close(found, path_of(learned, params, rows)[-1], rtol=1e-5, atol=1e-6)


def test_meta_parameters():
    # g, θ, 4 momenta, 2 · (r, 1 / r), 2 · (g, 4 momenta) / s, 11 time scales.
    assert sum(p.numel() for p in CoordinatewiseMLP().parameters()) == 32 * (31 + 1) + 32 * 33 + 2 * 33


@pytest.mark.parametrize("task", [Quadratic(4, init="zeros"), LogisticRegression(5, 3, examples=20, batch_size=4)])
def test_runs_on_tasks(task):
    torch.manual_seed(0)
    _, losses = run(CoordinatewiseMLP(), task.sample(ProblemKeys(0, "train", 0, range(3))), 10)
    assert losses.isfinite().all() and (losses[10] != losses[0]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_size": 0}, "optimizer.hidden_size=0: must be >= 1"),
        ({"num_layers": 0}, "optimizer.num_layers=0: must be >= 1"),
        ({"output_scale": 0.0}, "optimizer.output_scale=0.0: must be > 0"),
        ({"exponent_scale": -1.0}, "optimizer.exponent_scale=-1.0: must be >= 0"),
        ({"momentum_decays": []}, r"optimizer.momentum_decays=\[\]: must be one or more decays in \[0, 1\)"),
        ({"rms_decays": [0.9, 1.0]}, r"optimizer.rms_decays=\[0.9, 1.0\]: must be one or more decays in \[0, 1\)"),
        ({"eps": math.nan}, "optimizer.eps=nan: must be > 0"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        CoordinatewiseMLP(**arguments)
