import math

import pytest
import torch
from torch import Tensor

from ph_l2o.optimizers import HNN
from ph_l2o.optimizers.hnn import HNNState
from ph_l2o.params import Layout, Params

LAYOUTS = [Layout(("theta",), ((6,),)), Layout(("weight", "bias", "scale"), ((2, 3), (2,), ()))]


def product(matrix: list[list[float]], x: list[float], bias: list[float] | None = None) -> list[float]:
    rows = [sum(m * v for m, v in zip(row, x, strict=True)) for row in matrix]
    return rows if bias is None else [r + b for r, b in zip(rows, bias, strict=True)]


def inputs(x: float, preprocess: bool) -> list[float]:
    if not preprocess:
        return [x]
    if abs(x) < math.exp(-10):
        return [-1.0, math.exp(10) * x]
    return [math.log(abs(x)) / 10, math.copysign(1, x)]


def reference(optimizer: HNN, grad: float, carried: float) -> tuple[float, float]:
    """The published formulas, literally, for one coordinate: step and next p, before any norm."""
    w = {name: p.tolist() for name, p in optimizer.named_parameters()}
    q, p = inputs(grad, optimizer.preprocess), inputs(carried, optimizer.preprocess)
    n = len(q)

    def network(name: str) -> list[float]:
        hidden = product(w[f"{name}.inner.weight"], q, w[f"{name}.inner.bias"])
        hidden = [max(x, 0.0) for x in hidden]
        return product(w[f"{name}.outer.weight"], hidden, w[f"{name}.outer.bias"])

    gv, v = network("control"), network("potential")
    dissipated = product(w["dissipation.weight"], v + p)
    d_q, d_p = dissipated[:n], dissipated[n:]
    root = w["mass.weight"]
    mass = [[sum(root[i][k] * root[j][k] for k in range(n)) for j in range(n)] for i in range(n)]
    h_q = [p[i] - d_q[i] for i in range(n)]
    row = [-v[i] - d_p[i] + gv[i] for i in range(n)]
    h_p = [sum(row[i] * mass[i][j] for i in range(n)) for j in range(n)]
    (step,) = product(w["output.weight"], h_q + q)
    (following,) = product(w["carry.weight"], h_q + h_p, w["carry.bias"])
    return optimizer.output_scale * step, following


def random_inputs(layout: Layout) -> tuple[Params, list[Tensor]]:
    torch.manual_seed(3)
    params = Params(torch.randn(2, layout.numel, dtype=torch.float64), layout)
    sizes = 10 ** (3 * torch.randn(4, 2, layout.numel, dtype=torch.float64))
    grads = list(torch.randn_like(sizes) * sizes)
    grads[1][0, 0] = 0.0
    return params, grads


@pytest.mark.parametrize("layout", LAYOUTS, ids=["one", "several"])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("preprocess", [False, True])
def test_matches_the_published_formulas(preprocess, norm, layout):
    torch.manual_seed(0)
    optimizer = HNN(output_scale=0.7, preprocess=preprocess, norm=norm).double()
    params, grads = random_inputs(layout)
    state = optimizer.init(params)
    for grad in grads:
        new, following = optimizer.update(params, params.like(grad), None, state)
        for i in range(2):
            pairs = [reference(optimizer, g, p) for g, p in zip(grad[i].tolist(), state.p[i].tolist(), strict=True)]
            steps = torch.tensor([s for s, _ in pairs], dtype=torch.float64)
            carried = torch.tensor([p for _, p in pairs], dtype=torch.float64)
            if norm:
                carried = torch.cat([part / part.norm() for part in carried.split(layout.sizes)])
            torch.testing.assert_close(new.flat[i], params.flat[i] + steps, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(following.p[i], carried, rtol=1e-10, atol=1e-12)
        params, state = new, following


@pytest.mark.parametrize(("preprocess", "count"), [(False, 19), (True, 55)])
def test_number_of_parameters(preprocess, count):
    assert sum(p.numel() for p in HNN(preprocess=preprocess).parameters()) == count


def untrained(optimizer: HNN) -> int:
    """Number of parameters, in whole tensors, that get no gradient over a few steps."""
    params, grads = random_inputs(LAYOUTS[1])
    state = optimizer.init(params)
    for grad in grads:
        params, state = optimizer.update(params, params.like(grad), None, state)
    parameters = list(optimizer.parameters())
    gradients = torch.autograd.grad(params.flat.square().sum(), parameters, allow_unused=True)
    return sum(p.numel() for p, g in zip(parameters, gradients, strict=True) if g is None or not g.any())


def test_detach_carry_trains_what_the_study_trains():
    torch.manual_seed(0)
    assert untrained(HNN(detach_carry=True).double()) == 23
    assert untrained(HNN().double()) == 2  # the mass's bias, which does not act


def test_zero_norm_is_no_division_by_zero():
    optimizer = HNN(preprocess=False, norm=True)
    for p in optimizer.parameters():
        torch.nn.init.zeros_(p)
    torch.nn.init.ones_(optimizer.output.weight)
    params = Params(torch.ones(2, 3), Layout(("theta",), ((3,),)))
    grad = torch.ones(2, 3, requires_grad=True)
    new, state = optimizer.update(params, params.like(grad), None, optimizer.init(params))
    new, state = optimizer.update(new, params.like(grad), None, state)
    assert torch.equal(state.p, torch.zeros(2, 3))
    (new.flat.sum() + state.p.sum()).backward()
    assert new.flat.isfinite().all()
    assert grad.grad is not None and grad.grad.isfinite().all()
    gradients = [p.grad for p in optimizer.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() for g in gradients)


def test_update_is_pure_and_batch_independent():
    torch.manual_seed(0)
    optimizer = HNN(norm=True)
    params, (grad, *_) = random_inputs(LAYOUTS[1])
    params, grads = params.like(params.flat.float()), params.like(grad.float())
    state = HNNState(torch.randn_like(params.flat))
    before = [t.clone() for t in (params.flat, grads.flat, state.p)]
    with torch.no_grad():
        first, again = (optimizer.update(params, grads, None, state) for _ in range(2))
        alone, _ = optimizer.update(
            params.like(params.flat[1:]), grads.like(grads.flat[1:]), None, HNNState(state.p[1:])
        )
    assert torch.equal(first[0].flat, again[0].flat) and torch.equal(first[1].p, again[1].p)
    for old, now in zip(before, (params.flat, grads.flat, state.p), strict=True):
        assert torch.equal(old, now)
    torch.testing.assert_close(alone.flat, first[0].flat[1:])


def test_output_scale_out_of_range():
    with pytest.raises(ValueError, match=r"optimizer\.output_scale=-1: must be > 0"):
        HNN(output_scale=-1)
