"""One step of the port-Hamiltonian optimizer in place: the same step as its pure `update`, for B = 1.

Three passes over the coordinates (`kernels.py`), and between them numbers for each tensor and for all. The numbers are
on the CPU, whatever the parameters are. The step scale is written s = root · q with q = (v + floor)^(-1/4), so that all
else about it are factors of sums.

What is remembered of the gradient is in units of S, which is 1 where the gradient is neither very small nor very large:
then the gradient is used as it is. g, v and q are in units of S too, and u = G / S.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from ph_l2o.params import Layout
from ph_l2o.port_hamiltonian import controller
from ph_l2o.port_hamiltonian.arithmetic import Numbers
from ph_l2o.port_hamiltonian.energy import (
    at_the_start,
    compare_gradients,
    energies_before,
    energy_after,
    inverse_inertia,
    observe,
    remember,
    solve_for_r,
)
from ph_l2o.port_hamiltonian.slots import (
    Array,
    Slot,
    all_sums,
    averaging_weights,
    change_unit,
    kinetic_at_rest,
    pull_at_rest,
    square,
)
from ph_l2o.port_hamiltonian.state import SECOND, THETA, PortHamiltonianState, Seen

_LEAST_RHO = 1e-20
_USUAL = (1e-6, 1e6)  # gradients' units for which S is 1
_ROUNDING = 1e-12
_POWERS = np.array([2, 2, 2, 0, 0, 2, 2, 2, 1])[:, None]  # of the gradient, in the sums
_BY_PARAMETER = {"averages": None, "second": None, "momentum": None}
_NOTHING_SEEN = PortHamiltonianState(
    **dict.fromkeys(PortHamiltonianState._fields, 0.0) | {"uses_loss": 1.0} | _BY_PARAMETER
)
_DECAYS = "decays"  # in the account: stiffness, beside the common one, of the springs whose energy is in it


class Passes(Protocol):
    """See `ph_l2o.port_hamiltonian.kernels.Plain`."""

    def largest(self) -> float: ...
    def absorb(self, factor: float, weights: Array, /) -> Array: ...
    def predict(self, factor: float, numbers: Array, /) -> Array: ...
    def move(self, factor: float, predicted: Array, numbers: Array, /) -> Array: ...


Kernels = Callable[[Sequence[Slot]], Passes]


class Report(NamedTuple):
    """What happened in a step, for `diagnostics`.

    Attributes:
        names: Of the tensors.
        ports: What the controller did for each.
        gain: Gain of each, with the group's `lr`.
        spring: Energy of the springs.
        r_squared: r⁺².
    """

    names: tuple[str, ...]
    ports: controller.Ports
    gain: Array
    spring: float
    r_squared: float


@torch.no_grad()
def step(
    network: controller.FrozenController,
    slots: Sequence[Slot],
    loss: float | None,
    state: PortHamiltonianState,
    kernels: Kernels,
) -> tuple[PortHamiltonianState, Report | None]:
    """One step; θ and what the slots remember change in place.

    Args:
        network: The controller.
        slots: All tensors, at least one of which has a gradient.
        loss: The loss at θ, or None.
        state: Numbers before the step.
        kernels: The passes.

    Returns:
        Numbers after the step, and what was done; None if the step was skipped.
    """
    active = [slot for slot in slots if slot.grad is not None]
    resting = [slot for slot in slots if slot.grad is None]
    passes = kernels(active)
    seen = observe(passes.largest(), loss, state)
    if not seen.finite:
        return state._replace(skipped=state.skipped + 1), None
    factor, u = _units(slots, seen, state)

    weights = averaging_weights(active)
    sums = all_sums(active, passes.absorb(factor, weights), weights[:, -1]) / u**_POWERS
    layout = Layout(tuple(slot.name for slot in active), tuple(slot.shape for slot in active))
    sizes = Numbers.table(layout, controller.tensor_sizes, u)
    means = compare_gradients(Numbers.total(sums[SECOND]), Numbers.total(sizes), seen, state)
    ports = controller.ports(network, sums, sizes, *means, seen, state, layout)
    ports = ports._replace(rho=np.maximum(ports.rho, _LEAST_RHO))
    gain, floor = ports.scale(sums[SECOND] / sizes)
    gain = gain * [slot.lr for slot in active]
    root_squared = gain / np.sqrt(ports.rho)
    of_push, of_scale = np.sqrt(root_squared / u), np.sqrt(root_squared * u)  # h = of_push · q ĝ, s = of_scale · q

    predicted = np.array([floor / ports.rho * u**2, ports.mix]).T
    squares, with_momentum, with_theta = passes.predict(factor, predicted).T
    squares = root_squared / u * squares
    # Each tensor's stiffness is `stiff` times that of the account.
    stiff = 1 + np.array([slot.weight_decay for slot in active]) / state.stiffness
    rest = pull_at_rest(resting, state.stiffness)
    theta_square = float(stiff @ sums[THETA]) + 2 * rest / state.stiffness
    before = energies_before(Numbers.total(squares), theta_square, seen, state)
    root_length = math.sqrt(before.length)
    keep = inverse_inertia(ports.keep, gain / np.sqrt(floor) * stiff, before, seen, state)
    spring = state.stiffness * root_length * stiff
    products = before.rescale * of_push * with_momentum - spring * root_squared * with_theta
    trust, share = solve_for_r(float(keep @ products), float(keep @ squares), before)

    if before.shrink != 1:  # θ ← shrink θ + …, where the spring acts on what θ was
        for slot in active:
            slot.theta.mul_(before.shrink)
        spring = spring / before.shrink if before.shrink else 0 * spring
    force = keep * of_push * (trust / root_length)
    moves = np.array([keep * before.rescale, force, keep * of_scale * spring, of_scale * root_length]).T
    momentum_square, moved_square = passes.move(factor, predicted, moves).T
    for slot, value in zip(active, momentum_square.tolist(), strict=True):
        slot.memory["momentum_square"] = value
    kinetic = 0.5 * Numbers.total(momentum_square) + kinetic_at_rest(resting, before.rescale)
    pull = 0.5 * state.stiffness * float(stiff @ moved_square) + rest
    energy = energy_after(trust, kinetic, pull, before, seen, state)
    after = remember(state, seen, before, *means, energy, kinetic, trust, share)
    return after, Report(layout.names, ports, gain, pull, trust * trust * before.phi)


def diagnostics(state: PortHamiltonianState, report: Report | None) -> dict[str, Any]:
    """Plain numbers about the last step; see `ph_l2o.optim.PortHamiltonian.diagnostics`."""
    names = ("energy", "kinetic", "trust", "loss_unit", "gradient_unit")
    found: dict[str, Any] = {name: getattr(state, name) for name in names}
    found |= {"steps": int(state.step), "skipped": int(state.skipped), "uses_loss": state.uses_loss > 0}
    found |= {"spring": 0.0, "tank": state.energy, "tensors": {}}
    if report is None:
        return found
    found["spring"] = report.spring
    found["tank"] -= state.kinetic + report.spring + report.r_squared
    lists = {key: column.tolist() for key, column in report.ports.shown(report.gain).items()}
    found["tensors"] = {name: {key: x[k] for key, x in lists.items()} for k, name in enumerate(report.names)}
    return found


def state_of(account: Mapping[str, Any]) -> PortHamiltonianState:
    """The numbers in an account as it lies in the drop-in's `state`; of an empty one, those before the first step."""
    return _NOTHING_SEEN._replace(**{name: x for name, x in account.items() if name != _DECAYS})


def account_of(state: PortHamiltonianState, slots: Sequence[Slot]) -> dict[str, Any]:
    """The account as it lies in `state` of the drop-in: plain numbers."""
    numbers = {name: x for name, x in state._asdict().items() if name not in _BY_PARAMETER}
    return {**numbers, _DECAYS: [slot.weight_decay for slot in slots]}


def with_new_springs(
    account: Mapping[str, Any], slots: Sequence[Slot], budget: float, radius: float
) -> PortHamiltonianState:
    """The numbers in an account, with the energy of springs that are new in it or have become stiffer."""
    state, known = state_of(account), list(account.get(_DECAYS, []))
    decays = [slot.weight_decay for slot in slots]
    if known == decays:
        return state
    squares = [square(slot.theta) for slot in slots]
    if known:
        energy, stiffness = state.energy + 0.5 * state.stiffness * sum(squares[len(known) :]), state.stiffness
    else:
        size = sum(slot.theta.numel() for slot in slots)
        energy, stiffness = at_the_start(sum(squares), size, budget, radius)
    known += [0.0] * (len(slots) - len(known))
    for theta_square, before, now in zip(squares, known, decays, strict=True):
        energy += 0.5 * max(now - before, 0.0) * theta_square
    return state._replace(energy=energy, stiffness=stiffness)


def _units(slots: Sequence[Slot], seen: Seen, state: PortHamiltonianState) -> tuple[float, float]:
    """From the gradient to what is remembered of it, which gets the unit S; u."""
    unit, last_unit = _stored_unit(seen.gradient_unit), _stored_unit(state.gradient_unit)
    if unit != last_unit:
        change_unit(slots, last_unit / unit)
    clip = seen.factor * seen.gradient_unit
    return (1.0 if clip > 1 - _ROUNDING else clip) / unit, seen.gradient_unit / unit


def _stored_unit(gradient_unit: float) -> float:
    """S, a power of 2."""
    least, most = _USUAL
    usual = least <= gradient_unit <= most or gradient_unit == 0
    return 1.0 if usual else 2.0 ** round(math.log2(gradient_unit))
