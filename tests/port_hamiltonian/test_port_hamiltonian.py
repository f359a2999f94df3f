"""The guarantees of the port-Hamiltonian optimizer, against a slow and literal implementation of its equations."""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ph_l2o.optimizers import PortHamiltonian, map_state
from ph_l2o.params import Layout, Params
from ph_l2o.port_hamiltonian import controller
from ph_l2o.port_hamiltonian.controller import Ports
from ph_l2o.port_hamiltonian.state import PortHamiltonianState

STEPS = 200
LAYOUTS = {
    "one": Layout(("theta",), ((5,),)),
    "four": Layout(("w1", "b1", "w2", "b2"), ((3, 4), (3,), (2, 3), ())),
}
SEEDS = range(6)
KINDS = 10
OUTWARD, BROKEN = 7, 8  # the gradient is -θ; some gradients and losses are not finite
NUMBERS = ("gradient_unit", "reference", "loss_start", "loss_fast", "loss_slow", "loss_unit", "uses_loss")
DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)


def reference(
    ports: Ports, layout: Layout, flat: Tensor, grad: Tensor, loss: float | None, old: PortHamiltonianState
) -> dict[str, Tensor | float]:
    """One step of one problem, tensor by tensor: the next state, `flat`, and the terms of the identity.

    The loss and the gradient are finite.
    """
    k = old.step.item() + 1
    uses = bool(old.uses_loss) and loss is not None and loss >= 0
    f = loss if uses and loss is not None else 0.0
    largest, unit = grad.abs().max().item(), old.gradient_unit.item()
    if old.second_mean.item() == 0:
        unit = largest
    elif largest > unit:
        unit = min(largest, 1000 * unit)
    elif 0 < 1000 * largest < unit and old.second_mean < 1 and old.reference < 1e22:
        unit /= 1000
    unit = max(unit, 1e-36)
    g = grad / max(unit, largest)
    change = max(old.gradient_unit.item(), 1e-36) / unit if old.second_mean.item() else 1.0
    start = f if k == 1 else old.loss_start.item()
    fast, slow = average(old.loss_fast.item(), f, 0.9, k), average(old.loss_slow.item(), f, 0.99, k)

    averages = [average(m * change, g, d, k) for m, d in zip(old.averages, (0.9, 0.99), strict=True)]
    second = average(old.second * change**2, g * g, 0.95, k)
    second_mean = second.mean().item()
    past = old.reference.item() * change**2
    past += (second_mean - past) / min(k, 1000)

    tensors = []
    columns = (flat, old.momentum, g, *averages, second)
    for t, (theta, pi, gt, m9, _, v) in enumerate(zip(*(x.split(layout.sizes) for x in columns), strict=True)):
        mix, keep, rho = ports.mix[t].item(), ports.keep[t].item(), ports.rho[t].item()
        gain = math.exp(min(max(ports.log_gain[t].item(), -30), 8))
        floor = (1 - rho) * (v.mean() + 1e-20) + 1e-10 * second_mean
        gain = gain if (gt * gt).sum() > 0 else 0.0
        s = (gain / (rho * v + floor).sqrt()).sqrt()
        tensors.append((theta, pi, s, s * ((1 - mix) * gt + mix * m9), 1 / keep - 1, gain / floor.sqrt()))

    spent = sum((h * h).sum().item() for *_, h, _, _ in tensors)
    newest = f if uses else spent * unit if spent > 0 else old.loss_unit.item()
    loss_unit = min(max(average(old.loss_unit.item(), newest, 0.9, k), 1e-36), 1e36)
    length = min(max(loss_unit / unit, math.exp(-40)), math.exp(40))
    phi = 4 * (max(f / loss_unit, 1e-4) if uses else 1.0)
    kappa, rest, account = old.stiffness.item(), old.rest_radius.item(), old.energy.item()

    def potential(theta: Tensor) -> float:
        return 0.5 * kappa * max(theta.norm().item() - rest, 0.0) ** 2

    pull, size = min(potential(flat), account), flat.norm().item()
    slope = kappa * max(size - rest, 0.0) / max(size, 1e-18)  # ∇V(θ) over θ
    kinetic = 0.5 * (old.momentum**2).sum().item()
    rescale = min(old.loss_unit.item() / loss_unit, (account - pull) / max(kinetic, 1e-12)) if k > 1 else 1.0
    r_squared = min(phi, 4, account - pull - rescale * kinetic)
    r = math.sqrt(r_squared) if r_squared > 1e-12 else 0.0
    before = r * r + rescale * kinetic + pull

    above, share, parts = r, 0.0, []
    for theta, pi, s, h, damping, most in tensors:
        sigma, c, a = (
            math.sqrt(length) * s,
            h / (2 * math.sqrt(phi * length)),
            1 + damping + 0.5 * kappa * length * most,
        )
        pi = math.sqrt(rescale) * pi
        b = pi - sigma * slope * theta
        above, share = above + (c * b / a).sum().item(), share + (2 * c * c / a).sum().item()
        parts.append((theta, pi, sigma, c, damping, a, b))
    r_new = above / (1 + share)
    dissipated = least = (r_new - r) ** 2
    linear = 0.0
    flats, momenta = [], []
    for theta, pi, sigma, c, damping, a, b in parts:
        new_pi = (b - 2 * c * r_new) / a
        move = sigma * new_pi
        change_of_pi = 0.5 * ((new_pi - pi) ** 2).sum().item()
        dissipated += ((a - 1) * new_pi**2).sum().item() + change_of_pi
        least += damping * (new_pi**2).sum().item() + change_of_pi
        linear += slope * (theta * move).sum().item()
        flats.append(theta + move)
        momenta.append(new_pi)
    new, momentum = torch.cat(flats), torch.cat(momenta)
    dissipated -= potential(new) - potential(flat) - linear  # V's Bregman divergence, at most ½κ‖Δθ‖²
    after = r_new**2 + 0.5 * (momentum**2).sum().item() + potential(new)
    return {
        "flat": new,
        "momentum": momentum,
        "averages": torch.stack(averages),
        "second": second,
        "gradient_unit": unit,
        "reference": past,
        "loss_start": start,
        "loss_fast": fast,
        "loss_slow": slow,
        "loss_unit": loss_unit,
        "uses_loss": float(uses),
        "energy": account - (before - after) / k,
        "trust": r_new / math.sqrt(phi),
        "share": share,
        "before": before,
        "after": after,
        "dissipated": dissipated,
        "least": least,
    }


def average(old, new, decay: float, k: float):
    """The average Σ decay^(k-j) x_j, divided by the sum of its weights."""
    total = old * sum(decay**j for j in range(1, int(k))) + new
    return total / sum(decay**j for j in range(int(k)))


def hostile(
    seed: int,
    dtype: torch.dtype = torch.float64,
    std: float = 1.0,
    kind: type[PortHamiltonian] = PortHamiltonian,
    **arguments: Any,
) -> Any:
    torch.manual_seed(seed)
    optimizer = kind(**arguments).to(dtype)
    with torch.no_grad():
        for p in optimizer.parameters():
            p += std * torch.randn_like(p)
    return optimizer


def attack(layout: Layout, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Params, Tensor, Tensor]:
    """Start, gradients `(STEPS, KINDS, N)` and losses `(STEPS, KINDS)` that have nothing to do with each other."""
    torch.manual_seed(1000 + seed)
    g = torch.randn(STEPS, KINDS, layout.numel, dtype=torch.float64)
    losses = 10 ** (3 * torch.randn(STEPS, KINDS, dtype=torch.float64))
    losses[:, 0] = losses[0, 0]
    g[:, 1] *= 1e30
    g[:, 2] *= 1e-30
    g[::2, 3] *= 1e30
    g[1::2, 3] *= 1e-30
    losses[::2, 3], losses[1::2, 3] = 1e30, 1e-30
    g[:, 4] = g[0, 4] * torch.tensor([1.0, -1.0]).repeat(STEPS // 2)[:, None]
    losses[:, 4] = losses[:, 4].abs() ** 0.25
    g[:, 5] *= 10 ** (60 * torch.rand(STEPS, 1, dtype=torch.float64) - 30)
    losses[:, 5] = 10 ** (60 * torch.rand(STEPS, dtype=torch.float64) - 30)
    g[:, 6] *= torch.rand(STEPS, layout.numel) < 0.1
    losses[50:, 6] *= -1
    g[:5, 9], losses[:5, 9] = 0.0, 0.0
    losses[::7] *= (torch.rand(KINDS) < 0.5).double()  # exactly 0
    g[10::17, BROKEN, 0] = torch.tensor([math.nan, math.inf, -math.inf]).repeat(9)[: len(g[10::17])]
    losses[3::19, BROKEN] = torch.tensor([math.nan, math.inf, -math.inf]).repeat(9)[: len(g[3::19])].double()
    return Params(torch.randn(KINDS, layout.numel, dtype=dtype), layout), g.to(dtype), losses.to(dtype)


def gradient_of(params: Params, gradient: Tensor) -> Params:
    gradient = gradient.clone()
    gradient[OUTWARD] = -params.flat[OUTWARD]
    return params.like(gradient)


def in_use(params: Params, loss: Tensor | None, state: PortHamiltonianState) -> Tensor:
    """H = r² + ½‖π‖² + V(θ) after a step, in float64."""
    theta, pi, kappa = params.flat.double(), state.momentum.double(), state.stiffness.double()
    relative = torch.ones_like(kappa)
    if loss is not None:
        used = (state.uses_loss > 0) & loss.isfinite()
        relative = torch.where(used, (loss.double() / state.loss_unit.double()).clamp_min(1e-4), relative)
    beyond = (theta.norm(dim=1) - state.rest_radius.double()).clamp_min(0)
    return state.trust.double() ** 2 * 4 * relative + 0.5 * (pi * pi).sum(1) + 0.5 * kappa * beyond**2


def assert_close(actual: Tensor, expected: Tensor | float, size: Tensor | float = 0.0, rtol: float = 1e-9) -> None:
    """Equal up to `rtol` of the larger of `expected` and `size`."""
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    bound = rtol * torch.maximum(expected.abs(), torch.as_tensor(size, dtype=expected.dtype))
    assert ((actual - expected).abs() <= bound).all(), (actual, expected)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("losses_are", ["seen", "hidden", "missing"])
@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_step_and_identity_match_the_reference(layout, losses_are, seed, monkeypatch):
    """For the ports that the controller sets, of which `test_controller.py` has more."""
    seen: list[Ports] = []
    set_ports = controller.ports
    monkeypatch.setattr(controller, "ports", lambda *arguments: seen.append(set_ports(*arguments)) or seen[-1])
    optimizer = hostile(seed, budget=[0.3, 100.0][seed % 2], radius=[2.0, 1000.0][seed // 2])
    params, gradients, losses = attack(layout, seed)
    state = optimizer.init(params)
    if losses_are == "hidden":
        state = optimizer.hide_loss(state, torch.ones(KINDS, dtype=torch.bool))
    start = state.energy
    for step in range(88):
        seen.clear()
        grads = gradient_of(params, gradients[step])
        loss = None if losses_are == "missing" else losses[step]
        new, following = optimizer.update(params, grads, loss, state)
        for i in range(KINDS) if step < 4 or step % 29 == 0 else ():
            old, now = (map_state(lambda x: x[i], s) for s in (state, following))  # noqa: B023
            if not grads.flat[i].isfinite().all() or (loss is not None and not loss[i].isfinite()):
                continue
            ports, f = Ports(*(x[i] for x in seen[0])), None if loss is None else loss[i].item()
            ref = reference(ports, layout, params.flat[i], grads.flat[i], f, old)
            # The identity, of the reference and of the optimizer.
            account = start[i].item()
            assert ref["least"] <= ref["dissipated"] * (1 + 1e-9) + 1e-12 * account
            assert abs(ref["before"] - ref["after"] - ref["dissipated"]) <= 1e-12 * account
            after = in_use(new, loss, following)[i].item()
            assert abs(ref["before"] - after - ref["dissipated"]) <= 1e-12 * account
            # Where the scale is large, what is added to θ and π is a difference of large numbers.
            size = torch.maximum((new.flat[i] - params.flat[i]).abs(), params.flat[i].abs()).amax()
            assert_close(new.flat[i], ref["flat"], size)
            assert_close(now.momentum, ref["momentum"], ref["momentum"].abs().amax() + 1e-6 * account**0.5)
            assert_close(now.averages, ref["averages"], ref["averages"].abs().amax())
            assert_close(now.second, ref["second"], ref["second"].amax())
            assert_close(now.energy, ref["energy"], account, rtol=1e-12)
            for name in (
                "gradient_unit",
                "reference",
                "loss_start",
                "loss_fast",
                "loss_slow",
                "loss_unit",
                "uses_loss",
            ):
                assert_close(getattr(now, name), ref[name])
            assert_close(now.share, ref["share"])
            assert_close(now.trust, ref["trust"], account**0.5)
        params, state = new, following


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@DTYPES
@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_energy_and_ball_on_hostile_sequences(layout, dtype, tolerance, seed):
    """The account never increases and is never exceeded; θ stays in the ball; what is lost is as little as proved."""
    optimizer = hostile(seed, dtype, budget=[1e-2, 1.0, 100.0][seed % 3], radius=[2.0, 1000.0][seed % 2])
    params, gradients, losses = attack(layout, seed, dtype)
    state = optimizer.init(params)
    start, radius = state.energy.double(), state.radius().double()
    count, injected, worst_mean = (torch.zeros(KINDS, dtype=torch.float64) for _ in range(3))
    for gradient, loss in zip(gradients, losses, strict=True):
        old = state
        params, state = optimizer.update(params, gradient_of(params, gradient), loss, state)
        fine = state.skipped == old.skipped
        assert (state.energy <= old.energy).all()
        assert (in_use(params, loss, state) <= state.energy.double() + tolerance * start)[fine].all()
        assert (params.flat.double().norm(dim=1) <= radius * (1 + tolerance)).all()
        # Re-setting r and π injects at most 4 + (ρ - 1)₊ K; see docs/theory.md.
        count += fine
        growth = torch.where(old.step > 0, (old.loss_unit / state.loss_unit).double() - 1, 0.0).clamp_min(0)
        injected += fine * (4 + growth * old.kinetic.double())
        worst_mean = torch.maximum(worst_mean, injected / count.clamp_min(1))
        lost = worst_mean * (1 + count.clamp_min(1).log())
        assert (state.energy.double() >= start - lost - STEPS * tolerance * start).all()
    assert params.flat.isfinite().all() and all(x.isfinite().all() for x in state)
    broken = ~(gradients.isfinite().all(2) & losses.isfinite())
    assert broken[:, BROKEN].sum() > 20 and torch.equal(state.skipped, broken.sum(0).to(dtype))


STEP = st.tuples(
    st.floats(-30, 30),
    st.sampled_from([0, 1, 2, "outward", "along", "zero", "broken"]),
    st.one_of(st.none(), st.just(0.0), st.just(math.nan), st.just(-1.0), st.floats(-30, 30).map(lambda x: 10**x)),
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    steps=st.lists(STEP, min_size=1, max_size=30),
    seed=st.integers(0, 1000),
    std=st.floats(0, 3),
    log_budget=st.floats(-6, 6),
    log_radius=st.floats(0.31, 3),
    single=st.booleans(),
)
@torch.no_grad()
def test_no_adversary_exceeds_the_account(steps, seed, std, log_budget, log_radius, single):
    dtype, tolerance = (torch.float32, 1e-5) if single else (torch.float64, 1e-12)
    optimizer = hostile(seed, dtype, std, budget=10**log_budget, radius=10**log_radius)
    layout = LAYOUTS["four"]
    directions = torch.randn(3, 1, layout.numel, dtype=dtype)
    params = Params(torch.randn(1, layout.numel, dtype=dtype), layout)
    state = optimizer.init(params)
    start, radius, skipped = state.energy.double(), state.radius().double(), 0
    for exponent, which, value in steps:
        direction = {"outward": -params.flat, "along": -state.momentum, "zero": 0 * params.flat}.get(which)
        direction = directions[which] if isinstance(which, int) else direction
        gradient = torch.full_like(params.flat, math.nan) if direction is None else 10**exponent * direction
        loss = None if value is None else torch.tensor([value], dtype=dtype)
        before, step = state.energy, state.step
        params, state = optimizer.update(params, params.like(gradient), loss, state)
        skipped += which == "broken" or (value is not None and math.isnan(value))
        assert state.energy <= before
        if state.step > step:
            assert in_use(params, loss, state) <= state.energy.double() + tolerance * start
        assert params.flat.double().norm() <= radius * (1 + tolerance)
        assert all(x.isfinite().all() for x in state)
    assert state.skipped == skipped


@DTYPES
@torch.no_grad()
def test_what_has_been_pushed_to_the_border_stays(dtype, tolerance):
    """A small ball, and gradients that point outwards for long; every second problem begins at its border."""
    layout = LAYOUTS["four"]
    optimizer = hostile(3, dtype, 0.5, budget=1.0, radius=2.0, init_lr=1.0)
    torch.manual_seed(0)
    params = Params(torch.randn(16, layout.numel, dtype=dtype), layout)
    state = optimizer.init(params)
    radius, largest = state.radius().double(), torch.zeros(16, dtype=torch.float64)
    params.flat[::2] *= (0.999 * state.radius() / params.flat.norm(dim=1))[::2, None]
    for step in range(600):
        gradient = -params.flat + 0.1 * torch.randn_like(params.flat)
        loss = None if step % 3 else torch.full((16,), 10.0 ** (step % 5), dtype=dtype)
        params, state = optimizer.update(params, params.like(gradient), loss, state)
        largest = torch.maximum(largest, params.flat.double().norm(dim=1) / radius)
    assert (largest <= 1 + tolerance).all()
    assert largest[::2].min() > 0.99 and largest[1::2].max() > 0.52  # half of it is free of the spring


@DTYPES
@torch.no_grad()
def test_what_lies_outside_by_rounding_is_put_back(dtype, tolerance):
    """Errors of rounding do not add up."""
    layout = LAYOUTS["one"]
    optimizer = hostile(0, dtype)
    params = Params(torch.ones(1, layout.numel, dtype=dtype), layout)
    state = optimizer.init(params)
    params = params.like(params.flat * state.radius() / math.sqrt(layout.numel) * (1 + 100 * tolerance))
    assert params.flat.double().norm() > state.radius() * (1 + 10 * tolerance)
    params, _ = optimizer.update(params, params.like(-params.flat), torch.ones(1, dtype=dtype), state)
    assert params.flat.double().norm() <= state.radius() * (1 + tolerance)


@torch.no_grad()
def test_a_million_coordinates_in_float32():
    layout = Layout(("w", "b"), ((1000, 1000), (1000,)))
    optimizer = hostile(0, torch.float32, 0.3)
    torch.manual_seed(0)
    params = Params(torch.randn(1, layout.numel), layout)
    state = optimizer.init(params)
    start = state.energy.double()
    for step in range(4):
        loss = torch.tensor([10.0**step])
        params, state = optimizer.update(params, params.like(torch.randn_like(params.flat)), loss, state)
        assert (in_use(params, loss, state) <= state.energy.double() + 1e-5 * start).all()
    assert params.flat.isfinite().all()


@pytest.mark.parametrize("factor", [1e-30, 1e-10, 1e10, 1e30])
@pytest.mark.parametrize("losses_are", ["seen", "hidden"])
@torch.no_grad()
def test_units_of_the_loss_do_not_matter(factor, losses_are):
    layout = LAYOUTS["four"]
    optimizer = PortHamiltonian(init_lr=0.1)
    flats = []
    for unit in (1.0, factor):
        torch.manual_seed(0)
        params = Params(torch.randn(4, layout.numel), layout)
        center, state = torch.randn_like(params.flat), optimizer.init(params)
        if losses_are == "hidden":
            state = optimizer.hide_loss(state, torch.ones(4, dtype=torch.bool))
        for _ in range(60):
            away = params.flat - center
            loss = 0.5 * away.square().sum(1) + 0.01
            params, state = optimizer.update(params, params.like(unit * away), unit * loss, state)
        flats.append(params.flat)
        assert (params.flat - center).square().sum(1).max() < 0.5  # it got somewhere
    torch.testing.assert_close(flats[1], flats[0], rtol=0, atol=1e-3)


@DTYPES
@torch.no_grad()
def test_gradients_that_fall_by_sixty_decades(dtype, tolerance):
    """Averages of the past are huge in the new gradient's unit; then the gradients come back."""
    layout = LAYOUTS["four"]
    optimizer = PortHamiltonian().to(dtype)
    torch.manual_seed(0)
    params = Params(torch.randn(2, layout.numel, dtype=dtype), layout)
    state = optimizer.init(params)
    state = optimizer.hide_loss(state, torch.tensor([True, False]))
    start, scales = state.energy.double(), [1e30] * 10 + [1e-30] * 800 + [1e30] * 30
    for scale in scales:
        loss = torch.full((2,), scale, dtype=dtype)
        gradient = scale * torch.randn_like(params.flat)
        params, state = optimizer.update(params, params.like(gradient), loss, state)
    assert params.flat.isfinite().all() and all(x.isfinite().all() for x in state)
    assert (in_use(params, loss, state) <= state.energy.double() + tolerance * start).all()
    assert (state.gradient_unit >= 1e29).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["gradient", "loss"])
@pytest.mark.parametrize("first", [0, 5])
@torch.no_grad()
def test_what_is_not_finite_is_skipped(value, where, first):
    layout = LAYOUTS["four"]
    optimizer = hostile(2, torch.float32)
    params, gradients, losses = attack(layout, 2, torch.float32)
    chosen = [0, 4, 5]
    params, gradients, losses = params.like(params.flat[chosen]), gradients[:, chosen], losses[:, chosen]
    state = optimizer.init(params)
    for step in range(first):
        params, state = optimizer.update(params, params.like(gradients[step]), losses[step], state)
    gradient, loss = gradients[first].clone(), losses[first].clone()
    if where == "gradient":
        gradient[1, 7] = value
    else:
        loss[1] = value
    new, following = optimizer.update(params, params.like(gradient), loss, state)
    assert torch.equal(new.flat[1], params.flat[1])
    for name, old, now in zip(state._fields, state, following, strict=True):
        assert torch.equal(now[1], old[1] + 1 if name == "skipped" else old[1]), name
    # The others are as if nothing had happened beside them.
    expected, _ = optimizer.update(params, params.like(gradients[first]), losses[first], state)
    assert torch.equal(new.flat[::2], expected.flat[::2])
    # And the next step is that of a run which never saw it.
    after, _ = optimizer.update(new, params.like(gradients[first]), losses[first], following)
    assert torch.equal(after.flat[1], expected.flat[1])


@torch.no_grad()
def test_a_negative_loss_is_not_used_from_then_on():
    layout = LAYOUTS["four"]
    optimizer = hostile(2)
    params, gradients, losses = attack(layout, 2)
    state = optimizer.init(params)
    params, state = optimizer.update(params, params.like(gradients[0]), losses[0].abs(), state)
    assert (state.uses_loss == 1).all()
    params, state = optimizer.update(params, params.like(gradients[1]), -1 - losses[1].abs(), state)
    assert (state.uses_loss == 0).all()
    for loss in (
        torch.full((KINDS,), 1e200, dtype=torch.float64),
        torch.full((KINDS,), -3.0, dtype=torch.float64),
        None,
    ):
        flat = optimizer.update(params, params.like(gradients[2]), loss, state)[0].flat
        assert torch.equal(flat, optimizer.update(params, params.like(gradients[2]), losses[2], state)[0].flat)


@torch.no_grad()
def test_hidden_is_as_missing():
    layout = LAYOUTS["four"]
    optimizer = hostile(4)
    params, gradients, losses = attack(layout, 4)
    losses = losses.nan_to_num(1.0, 1.0, -1.0)
    found = []
    for hide in (True, False):
        now, state = params, optimizer.init(params)
        if hide:
            state = optimizer.hide_loss(state, torch.ones(KINDS, dtype=torch.bool))
        for gradient, loss in zip(gradients[:30], losses, strict=False):
            now, state = optimizer.update(now, now.like(gradient), loss if hide else None, state)
        found.append(now.flat)
    assert torch.equal(*found)
    state = optimizer.hide_loss(optimizer.init(params), torch.arange(KINDS) < 3)
    assert state.uses_loss.tolist() == [0.0] * 3 + [1.0] * (KINDS - 3)


def test_shapes_and_purity():
    layout = LAYOUTS["four"]
    optimizer = hostile(0, torch.float32)
    params, gradients, losses = attack(layout, 0, torch.float32)
    n, b = layout.numel, KINDS
    shapes = {"averages": (b, 2, n), "second": (b, n), "momentum": (b, n), "start_squares": (b, n)}
    state = optimizer.init(params)
    for step in range(3):
        assert {name: tuple(x.shape) for name, x in state._asdict().items()} == dict.fromkeys(
            PortHamiltonianState._fields, (b,)
        ) | shapes
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
    assert not PortHamiltonian.needs_loss


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


@pytest.mark.parametrize(
    ("scales", "losses"),
    [
        ([0.0, 0.0, 0.0], [0.0, 0.0, 1.0]),
        ([0.0, 0.0, 0.0], [None, None, None]),
        ([0.0, 1.0, 1.0], [1.0, 1e38, 1.0]),
        ([1.0, 0.0, 1e-30], [1.0, 1e-38, 1e-38]),
        ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0]),
        ([1e30, 1e-30, 1e30], [1e30, 1e-30, 1e30]),
        ([1e30, 1e30, 1.0], [1e-30, 1e-30, 1.0]),
        ([1e-30, 1e-30, 1.0], [1e30, 1e30, 1.0]),
        ([1.0, math.nan, 1.0], [1.0, 1.0, math.nan]),
        ([1.0, 1.0, 1.0], [1.0, -1.0, 3e38]),
        ([1e37, 1e37, 1e37], [None, None, None]),
    ],
    ids=str,
)
@pytest.mark.parametrize("budget", [1e-13, 1.0, 100.0])
def test_meta_gradients_are_finite(scales, losses, budget):
    """In float32; of first and second order."""
    optimizer = PortHamiltonian(budget=budget, radius=2.0 if budget == 1 else 1000.0)
    layout = LAYOUTS["four"]
    torch.manual_seed(0)
    noise = torch.randn(2, layout.numel).requires_grad_()
    params = Params(torch.stack([torch.zeros(layout.numel), torch.randn(layout.numel)]), layout)
    state = optimizer.init(params)
    for scale, loss in zip(scales, losses, strict=True):
        gradient = noise.detach() * math.nan if math.isnan(scale) else scale * noise
        if loss is not None and math.isfinite(loss):
            # As a loss at the parameters is: it depends on what came before.
            value = torch.full((2,), loss) + 1e-3 * loss * torch.tanh(params.flat.sum(1))
        else:
            value = None if loss is None else torch.full((2,), loss)
        params, state = optimizer.update(params, params.like(gradient), value, state)
    (params.flat.sum() + state.energy.sum()).backward()
    assert params.flat.isfinite().all() and state.energy.isfinite().all()
    assert noise.grad is None or noise.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in optimizer.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_size": 0}, "optimizer.hidden_size=0: must be >= 1"),
        ({"init_lr": 0.0}, "optimizer.init_lr=0.0: must be > 0"),
        ({"budget": 0.0}, "optimizer.budget=0.0: must be > 0 and finite"),
        ({"budget": math.inf}, "optimizer.budget=inf: must be > 0 and finite"),
        ({"radius": 1.9}, "optimizer.radius=1.9: must be >= 2 and finite"),
        ({"radius": math.nan}, "optimizer.radius=nan: must be >= 2 and finite"),
        ({"clock": 0}, "optimizer.clock=0: must be >= 1"),
        ({"decay": (200.0, 0.0)}, r"optimizer.decay=\[200.0, 0.0\]: must be two finite numbers > 0"),
        ({"total_steps": 1.5}, "optimizer.total_steps=1.5: must be a whole number >= 1"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        PortHamiltonian(**arguments)


def test_the_ball_is_as_large_as_declared():
    layout = LAYOUTS["four"]
    optimizer = PortHamiltonian(radius=10.0)
    for flat in (torch.zeros(1, layout.numel), 3 * torch.ones(1, layout.numel)):
        largest = max(flat.norm().item(), layout.numel**0.5)
        found = optimizer.init(Params(flat, layout)).radius().item()
        assert found == pytest.approx(10 * largest)


# What a budget costs: nothing, until it is used up.

DIM, PROBLEMS = 12, 6
Sampled = Callable[[int, Tensor], tuple[Tensor, Tensor]]  # step and θ → loss and gradient


def regression(seed: int, batch_size: int) -> tuple[Sampled, Tensor]:
    """Least squares with 5 per cent of noise on 64 points, and the solution without noise."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(PROBLEMS, 64, DIM, generator=generator, dtype=torch.float64)
    solution = torch.randn(PROBLEMS, DIM, 1, generator=generator, dtype=torch.float64)
    targets = inputs @ solution + 0.05 * torch.randn(PROBLEMS, 64, 1, generator=generator, dtype=torch.float64)

    def sampled(step: int, theta: Tensor) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(64, (batch_size,), generator=torch.Generator().manual_seed(step))
        x, error = inputs[:, chosen], inputs[:, chosen] @ theta[..., None] - targets[:, chosen]
        return error.square().mean((1, 2)), 2 * (x * error).mean(1)

    return sampled, solution[..., 0]


def change_of_data() -> tuple[Sampled, Tensor]:
    (before, solution), (after, _) = regression(0, 8), regression(1, 8)
    return lambda step, theta: (before if step < 100 else after)(step, theta), solution


def single_examples() -> tuple[Sampled, Tensor]:
    return regression(2, 1)[0], torch.zeros(PROBLEMS, DIM, dtype=torch.float64)


def fine_tuning() -> tuple[Sampled, Tensor]:
    return regression(3, 8)[0], regression(4, 8)[1]


def zero_at_first() -> tuple[Sampled, Tensor]:
    later, solution = regression(5, 8)

    def sampled(step: int, theta: Tensor) -> tuple[Tensor, Tensor]:
        loss, gradient = later(step, theta)
        return loss * (step >= 30), gradient * (step >= 30)

    return sampled, -solution


@pytest.mark.parametrize("scenario", [change_of_data, single_examples, fine_tuning, zero_at_first])
@pytest.mark.parametrize("std", [0.0, 0.2])
@torch.no_grad()
def test_the_budget_costs_nothing(scenario, std):
    """The same weights and noise with a hundred, ten thousand times more, and ten thousand times less."""
    sampled, start = scenario()
    flats, losses = {}, defaultdict[float, list[Tensor]](list)
    for budget in (100.0, 1e6, 1e-2):
        optimizer = hostile(
            7, std=std, init_lr=0.05, budget=budget, radius=1000 * math.sqrt(budget / 100) if budget > 1 else 10
        )
        params = Params(start, Layout(("theta",), ((DIM,),)))
        state = optimizer.init(params)
        for step in range(300):
            loss, gradient = sampled(step, params.flat)
            params, state = optimizer.update(params, params.like(gradient), loss, state)
            losses[budget].append(loss.mean())
        flats[budget] = params.flat
    torch.testing.assert_close(flats[100.0], flats[1e6], rtol=1e-6, atol=1e-9)
    assert torch.stack(losses[100.0][-64:]).mean() < 0.3
    assert sum(losses[1e-2]) > 1.5 * sum(losses[100.0])  # a budget that is too small is seen here
