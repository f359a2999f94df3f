"""The guarantees of the port-Hamiltonian optimizer, against a slow and literal implementation of its equations."""

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ph_l2o.optimizers import PortHamiltonian, map_state
from ph_l2o.optimizers.port_hamiltonian import PortHamiltonianState
from ph_l2o.params import Layout, Params

STEPS = 300
LAYOUTS = {
    "one": Layout(("theta",), ((5,),)),
    "four": Layout(("w1", "b1", "w2", "b2"), ((3, 4), (3,), (2, 3), ())),
}
SEEDS = range(6)
KINDS = 7


class Reference(NamedTuple):
    """One step of one problem; c, scale and damping by tensor."""

    flat: Tensor
    momentum: Tensor
    averages: Tensor
    second: Tensor
    r_squared_before: Tensor  # after it was re-set, before the step
    r_squared: Tensor
    tank: Tensor
    change: Tensor  # of r² + ½‖π‖²
    minus_dissipated: Tensor  # what the identity says the change is


def reference(
    optimizer: PortHamiltonian, layout: Layout, flat: Tensor, grad: Tensor, loss: Tensor, old: PortHamiltonianState
) -> Reference:
    """The optimizer's equations for one problem, tensor by tensor."""
    parts = layout.sizes
    t = float(old.step) + 1
    loss_start = loss if t == 1 else old.loss_start
    loss_average = average(old.loss_average, loss, 0.9, t)
    target = torch.clamp(loss, min=optimizer.loss_offset)
    r_squared = target if t == 1 else old.r_squared
    tank = optimizer.tank * target if t == 1 else old.tank
    share = 1 - 1 / t
    if target > r_squared:
        raised = min(target - r_squared, tank)
        r_squared, tank = r_squared + raised, tank - raised
    else:
        r_squared, tank = target, tank + share * (r_squared - target)

    shared = torch.stack([loss, loss_average, loss_start]).clamp(min=0).add(1e-10).log()
    tensors = []
    for k, (g, theta, pi) in enumerate(
        zip(grad.split(parts), flat.split(parts), old.momentum.split(parts), strict=True)
    ):
        means = [average(m.split(parts)[k], g, d, t) for m, d in zip(old.averages, (0.5, 0.9, 0.99), strict=True)]
        v = average(old.second.split(parts)[k], g * g, 0.95, t)
        log_v = (v.mean() + 1e-16).log()
        features = [0.1 * log_square(g)]
        features += [0.25 * (log_square(m) - log_v) for m in means]
        features += [0.2 * log_square(pi), 0.1 * log_square(theta), 0.5 * (log_square(g) - log_v)]
        features += [cosine(g, x) for x in (*means, pi)]
        features += [0.3 * shared[0], 0.3 * (shared[0] - shared[1]), 0.3 * (shared[0] - shared[2])]
        time = torch.tensor(t, dtype=flat.dtype)
        features += [0.3 * time.log(), *(torch.tanh(time / scale - 1) for scale in (20, 100, 1000))]
        shape = layout.shapes[k]
        static = [
            0.1 * math.log(len(g)),
            float(len(shape) > 1),
            0.1 * math.log(shape[-1] if shape else 1),
            k / layout.num_tensors,
            float(k >= layout.num_tensors - 2),
        ]
        x = torch.stack([torch.as_tensor(f, dtype=flat.dtype) for f in (*features, *static)])
        log_scale, mix, damping, exponent = optimizer.controller(x)
        damping, exponent = 1 / torch.sigmoid(damping) - 1, 0.25 * torch.sigmoid(exponent)
        scale = (log_scale - exponent * (v + 1e-16).log()).clamp(-15, 6).exp()
        c = scale * ((1 - mix) * g + mix * means[1]) / (2 * target.sqrt())
        tensors.append((theta, pi, means, v, scale, damping, c))

    r = r_squared.sqrt()
    above = r + sum((c * pi / (1 + d)).sum() for _, pi, _, _, _, d, c in tensors)
    below = 1 + sum((2 * c * c / (1 + d)).sum() for *_, d, c in tensors)
    r_new = above / below
    new_pi = [(pi - 2 * c * r_new) / (1 + d) for _, pi, _, _, _, d, c in tensors]
    new_flat = [theta + s * p for (theta, _, _, _, s, _, _), p in zip(tensors, new_pi, strict=True)]
    dissipated = (r_new - r) ** 2
    for (_, pi, *_, d, _), p in zip(tensors, new_pi, strict=True):
        dissipated = dissipated + (d * p * p).sum() + 0.5 * ((p - pi) ** 2).sum()
    momentum = torch.cat(new_pi)
    kinetic = 0.5 * (momentum * momentum).sum()
    change = r_new * r_new + kinetic - r_squared - 0.5 * (old.momentum**2).sum()
    return Reference(
        torch.cat(new_flat),
        momentum,
        torch.stack([torch.cat([means[j] for _, _, means, *_ in tensors]) for j in range(3)]),
        torch.cat([v for _, _, _, v, *_ in tensors]),
        r_squared,
        r_new * r_new,
        tank - share * change,
        change,
        -dissipated,
    )


def average(old: Tensor, new: Tensor, decay: float, t: float) -> Tensor:
    """The average Σ decay^(t-k) x_k, divided by the sum of its weights."""
    total = old * sum(decay**k for k in range(1, int(t))) + new
    return total / sum(decay**k for k in range(int(t)))


def log_square(x: Tensor) -> Tensor:
    return ((x * x).mean() + 1e-16).log()


def cosine(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).mean() / ((x * x).mean() + 1e-16).sqrt() / ((y * y).mean() + 1e-16).sqrt()


def hostile(seed: int, dtype: torch.dtype = torch.float64, **arguments: float) -> PortHamiltonian:
    torch.manual_seed(seed)
    optimizer = PortHamiltonian(**arguments).to(dtype)
    with torch.no_grad():
        for p in optimizer.parameters():
            p += torch.randn_like(p)
    return optimizer


def attack(layout: Layout, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Params, Tensor, Tensor]:
    """Start, gradients `(STEPS, KINDS, N)` and losses `(STEPS, KINDS)` that have nothing to do with each other."""
    torch.manual_seed(1000 + seed)
    g = torch.randn(STEPS, KINDS, layout.numel, dtype=torch.float64)
    g[:, 1] *= 1e8
    g[:, 2] *= 1e-8
    g[::2, 3] *= 1e8
    g[1::2, 3] *= 1e-8
    g[:, 4] = g[0, 4] * torch.tensor([1.0, -1.0]).repeat(STEPS // 2)[:, None]
    g[:, 5] *= 10 ** torch.randint(-8, 9, (STEPS, 1)).double()
    g[:, 6] *= torch.rand(STEPS, layout.numel) < 0.1
    losses = 10 ** (3 * torch.randn(STEPS, KINDS, dtype=torch.float64))
    losses[::2, 4] = 1e8
    losses[1::2, 4] = 1e-8
    losses[::7] *= (torch.rand(KINDS) < 0.5).double()  # exactly 0
    losses[:, 0] = losses[0, 0]
    start = torch.randn(KINDS, layout.numel, dtype=dtype)
    return Params(start, layout), g.to(dtype), losses.to(dtype)


def assert_close(actual: Tensor, expected: Tensor, size: Tensor | float = 0.0, rtol: float = 1e-9) -> None:
    """Equal up to `rtol` of the larger of `expected` and `size`."""
    bound = rtol * torch.maximum(expected.abs(), torch.as_tensor(size, dtype=expected.dtype))
    assert ((actual - expected).abs() <= bound).all(), (actual, expected)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_step_and_identity_match_the_reference(layout, seed):
    optimizer = hostile(seed, tank=[0.0, 1.0, 10.0][seed % 3], loss_offset=[1e-6, 1e-2][seed % 2])
    params, gradients, losses = attack(layout, seed)
    losses[:, 4] **= 0.25  # r² is only as accurate as rounding of the last loss allows
    state = optimizer.init(params)
    for step in range(STEPS):
        grads, loss = params.like(gradients[step]), losses[step]
        new, following = optimizer.update(params, grads, loss, state)
        if step < 4 or step % 37 == 0:
            for i in range(KINDS):
                old = map_state(lambda x: x[i], state)  # noqa: B023
                ref = reference(optimizer, layout, params.flat[i], grads.flat[i], loss[i], old)
                now = map_state(lambda x: x[i], following)  # noqa: B023
                energy = ref.r_squared_before + 0.5 * (old.momentum**2).sum()
                assert_close(ref.change, ref.minus_dissipated, energy, rtol=1e-12)
                assert_close(now.r_squared + now.kinetic - energy, ref.minus_dissipated, energy, rtol=1e-12)
                assert_close(now.averages, ref.averages, ref.averages.abs().amax())
                assert_close(now.second, ref.second, ref.second.amax())
                # Where the scale is large, what is added to θ and π is a difference of large numbers.
                assert_close(now.momentum, ref.momentum, ref.momentum.abs().amax())
                moved = ref.flat - params.flat[i]
                assert_close(new.flat[i] - params.flat[i], moved, torch.maximum(moved.abs(), ref.flat.abs()).amax())
                assert_close(now.r_squared, ref.r_squared, energy)
                assert_close(now.tank, ref.tank, old.energy())
        params, state = new, following


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["f64", "f32"])
@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_energy_non_increasing(layout, dtype, tolerance, seed):
    tank = [0.0, 1.0, 10.0][seed % 3]
    optimizer = hostile(seed, dtype, tank=tank)
    params, gradients, losses = attack(layout, seed, dtype)
    state = optimizer.init(params)
    start = (1 + tank) * losses[0].clamp_min(optimizer.loss_offset)
    before = start
    for gradient, loss in zip(gradients, losses, strict=True):
        params, state = optimizer.update(params, params.like(gradient), loss, state)
        after = state.energy()
        assert (after - before <= tolerance * start).all()
        assert (after <= (1 + tolerance) * start).all()
        assert (state.r_squared >= 0).all() and (state.tank >= -tolerance * start).all()
        torch.testing.assert_close(state.kinetic, 0.5 * state.momentum.square().sum(1))
        before = after
    assert params.flat.isfinite().all()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    steps=st.lists(
        st.tuples(st.floats(-8, 8), st.integers(0, 2), st.one_of(st.just(0.0), st.floats(1e-10, 1e10))),
        min_size=1,
        max_size=30,
    ),
    seed=st.integers(0, 1000),
    tank=st.floats(0, 100),
)
@torch.no_grad()
def test_no_adversary_raises_the_energy(steps, seed, tank):
    optimizer = hostile(seed, tank=tank)
    layout = LAYOUTS["four"]
    directions = torch.randn(3, 1, layout.numel, dtype=torch.float64)
    params = Params(torch.randn(1, layout.numel, dtype=torch.float64), layout)
    state, start = optimizer.init(params), (1 + tank) * max(steps[0][2], optimizer.loss_offset)
    before = torch.tensor([start], dtype=torch.float64)
    for exponent, which, loss in steps:
        gradient = 10**exponent * directions[which]
        params, state = optimizer.update(
            params, params.like(gradient), torch.tensor([loss], dtype=torch.float64), state
        )
        after = state.energy()
        assert after - before <= 1e-12 * start
        before = after


def test_shapes_and_purity():
    layout = LAYOUTS["four"]
    optimizer = hostile(0, torch.float32)
    params, gradients, losses = attack(layout, 0, torch.float32)
    n, b = layout.numel, KINDS
    shapes = [(b,), (b, 3, n), (b, n), (b, n), *[(b,)] * 5]
    state = optimizer.init(params)
    for step in range(3):
        assert [tuple(s.shape) for s in state] == shapes
        grads = params.like(gradients[step])
        before = [x.clone() for x in (params.flat, grads.flat, losses[step], *state)]
        first = optimizer.update(params, grads, losses[step], state)
        with torch.no_grad():
            second = optimizer.update(params, grads, losses[step], state)
        for old, now in zip(before, (params.flat, grads.flat, losses[step], *state), strict=True):
            assert torch.equal(old, now)
        assert torch.equal(first[0].flat, second[0].flat)
        assert all(torch.equal(x, y) for x, y in zip(first[1], second[1], strict=True))
        assert first[0].flat.requires_grad and not second[0].flat.requires_grad
        params, state = second
    assert PortHamiltonian.needs_loss
    with pytest.raises(ValueError, match="loss"):
        optimizer.update(params, params, None, state)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@torch.no_grad()
def test_problems_do_not_depend_on_each_other(layout):
    optimizer = hostile(1)
    params, gradients, losses = attack(layout, 1)
    state = optimizer.init(params)
    chosen = [6, 2]
    fewer = params.like(params.flat[chosen])
    fewer_state = optimizer.init(fewer)
    for gradient, loss in zip(gradients[:20], losses, strict=False):
        params, state = optimizer.update(params, params.like(gradient), loss, state)
        fewer, fewer_state = optimizer.update(fewer, fewer.like(gradient[chosen]), loss[chosen], fewer_state)
        torch.testing.assert_close(fewer.flat, params.flat[chosen], rtol=1e-9, atol=1e-12)
        # The next step starts from the same state, so that rounding errors cannot grow.
        fewer, fewer_state = fewer.like(params.flat[chosen]), map_state(lambda x: x[chosen], state)


def test_gradients_are_finite():
    optimizer = PortHamiltonian()
    layout = LAYOUTS["four"]
    params = Params(torch.zeros(2, layout.numel), layout)
    gradient = torch.zeros(2, layout.numel).requires_grad_()
    state = optimizer.init(params)
    for loss in (torch.zeros(2), torch.ones(2)):
        params, state = optimizer.update(params, params.like(gradient), loss, state)
    (params.flat.sum() + state.energy().sum()).backward()
    assert gradient.grad is not None and gradient.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in optimizer.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_size": 0}, "optimizer.hidden_size=0: must be >= 1"),
        ({"init_lr": 0.0}, "optimizer.init_lr=0.0: must be > 0"),
        ({"tank": -1.0}, "optimizer.tank=-1.0: must be >= 0"),
        ({"loss_offset": 0.0}, "optimizer.loss_offset=0.0: must be > 0"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        PortHamiltonian(**arguments)


@torch.no_grad()
def test_r_follows_a_fall_of_the_loss_in_float32():
    layout = LAYOUTS["one"]
    optimizer = PortHamiltonian(tank=1.0)
    params = Params(torch.ones(1, layout.numel), layout)
    zero, state = params.like(torch.zeros_like(params.flat)), optimizer.init(params)
    for loss in (1e8, 1.0):  # a spike, and back
        params, state = optimizer.update(params, zero, torch.tensor([loss]), state)
    torch.testing.assert_close(state.r_squared, torch.ones(1))  # without force, r does not change in the step
