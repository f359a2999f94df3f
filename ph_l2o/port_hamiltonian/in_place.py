"""One step of the port-Hamiltonian optimizer in place: the same step as its pure `update`, for B = 1.

Three passes over the coordinates (`kernels.py`), and between them numbers for each tensor and for all. The numbers are
on the CPU, whatever the parameters are. The step scale is written s = root · q with q = (v + floor)^(-1/4), so that all
else about it are factors of sums.

What is remembered of the gradient is in units of S, which is 1 where the gradient is neither very small nor very large:
then the gradient is used as it is. g, v and q are in units of S too, and u = G / S.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ph_l2o.params import Layout
from ph_l2o.port_hamiltonian import blocks as memory
from ph_l2o.port_hamiltonian import controller, energy
from ph_l2o.port_hamiltonian.arithmetic import Numbers
from ph_l2o.port_hamiltonian.blocks import Array, Block, square
from ph_l2o.port_hamiltonian.fused import Fused
from ph_l2o.port_hamiltonian.kernels import Plain
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
    blocks: Sequence[Block],
    loss: float | None,
    state: PortHamiltonianState,
    kernels: type[Plain] | type[Fused],
) -> tuple[PortHamiltonianState, Report | None]:
    """One step; θ and what the blocks remember change in place.

    Args:
        network: The controller.
        blocks: All tensors, at least one of which has a gradient.
        loss: The loss at θ, or None.
        state: Numbers before the step.
        kernels: The passes.

    Returns:
        Numbers after the step, and what was done; None if the step was skipped.
    """
    active = [block for block in blocks if block.grad is not None]
    resting = [block for block in blocks if block.grad is None]
    passes = kernels(active)
    seen = energy.observe(passes.largest(), loss, state)
    if not seen.finite:
        return state._replace(skipped=state.skipped + 1), None
    factor, u = _units(blocks, seen, state)

    # First pass: the gradient goes into its averages. Of the sums the controller makes the ports.
    weights = memory.averaging_weights(active)
    sums = memory.all_sums(active, passes.absorb(factor, weights), weights[:, -1]) / u**_POWERS
    layout = Layout(tuple(block.name for block in active), tuple(block.shape for block in active))
    sizes = Numbers.table(layout, controller.tensor_sizes, u)
    means = energy.compare_gradients(Numbers.total(sums[SECOND]), Numbers.total(sizes), seen, state)
    ports = controller.ports(network, sums, sizes, *means, seen, state, layout)
    ports = ports._replace(rho=np.maximum(ports.rho, _LEAST_RHO))
    gain, floor = ports.scale(sums[SECOND] / sizes)
    gain = gain * [block.lr for block in active]
    root_squared = gain / np.sqrt(ports.rho)
    of_push, of_scale = np.sqrt(root_squared / u), np.sqrt(root_squared * u)  # h = of_push · q ĝ, s = of_scale · q

    # Second pass: what the force would do. Of it r⁺.
    predicted = np.array([floor / ports.rho * u**2, ports.mix]).T
    squares, with_momentum, with_theta = passes.predict(factor, predicted).T
    squares = root_squared / u * squares
    # Each tensor's stiffness is `stiff` times that of the account.
    stiff = 1 + np.array([block.weight_decay for block in active]) / state.stiffness
    rest = memory.pull_at_rest(resting, state.stiffness)
    theta_square = float(stiff @ sums[THETA]) + 2 * rest / state.stiffness
    before = energy.energies_before(Numbers.total(squares), theta_square, seen, state)
    root_length = math.sqrt(before.length)
    keep = energy.inverse_inertia(ports.keep, gain / np.sqrt(floor) * stiff, before, seen, state)
    spring = state.stiffness * root_length * stiff
    products = before.rescale * of_push * with_momentum - spring * root_squared * with_theta
    trust, share = energy.solve_for_r(float(keep @ products), float(keep @ squares), before)

    # Third pass: π and θ.
    memory.shrink(active, before.shrink)
    spring = spring / before.shrink if before.shrink else 0 * spring  # it acts on what θ was
    force = keep * of_push * (trust / root_length)
    moves = np.array([keep * before.rescale, force, keep * of_scale * spring, of_scale * root_length]).T
    momentum_square, moved_square = passes.move(factor, predicted, moves).T
    for block, value in zip(active, momentum_square.tolist(), strict=True):
        block.memory["momentum_square"] = value
    kinetic = 0.5 * Numbers.total(momentum_square) + memory.kinetic_at_rest(resting, before.rescale)
    pull = 0.5 * state.stiffness * float(stiff @ moved_square) + rest
    account = energy.energy_after(trust, kinetic, pull, before, seen, state)
    after = energy.remember(state, seen, before, *means, account, kinetic, trust, share)
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
    lists = {key: column.tolist() for key, column in report.ports.by_name(report.gain).items()}
    found["tensors"] = {name: {key: x[k] for key, x in lists.items()} for k, name in enumerate(report.names)}
    return found


def state_of(account: Mapping[str, Any]) -> PortHamiltonianState:
    """The numbers in an account as it lies in the drop-in's `state`; of an empty one, those before the first step."""
    return _NOTHING_SEEN._replace(**{name: x for name, x in account.items() if name != _DECAYS})


def account_of(state: PortHamiltonianState, blocks: Sequence[Block]) -> dict[str, Any]:
    """The account as it lies in `state` of the drop-in: plain numbers."""
    numbers = {name: x for name, x in state._asdict().items() if name not in _BY_PARAMETER}
    return {**numbers, _DECAYS: [block.weight_decay for block in blocks]}


def with_new_springs(
    account: Mapping[str, Any], blocks: Sequence[Block], budget: float, radius: float
) -> PortHamiltonianState:
    """The numbers in an account, with the energy of springs that are new in it or have become stiffer."""
    state, known = state_of(account), list(account.get(_DECAYS, []))
    decays = [block.weight_decay for block in blocks]
    if known == decays:
        return state
    squares = [square(block.theta) for block in blocks]
    if known:
        account, stiffness = state.energy + 0.5 * state.stiffness * sum(squares[len(known) :]), state.stiffness
    else:
        size = sum(block.theta.numel() for block in blocks)
        account, stiffness = energy.at_the_start(sum(squares), size, budget, radius)
    known += [0.0] * (len(blocks) - len(known))
    for theta_square, before, now in zip(squares, known, decays, strict=True):
        account += 0.5 * max(now - before, 0.0) * theta_square
    return state._replace(energy=account, stiffness=stiffness)


def _units(blocks: Sequence[Block], seen: Seen, state: PortHamiltonianState) -> tuple[float, float]:
    """From the gradient to what is remembered of it, which gets the unit S; u."""
    unit, last_unit = _stored_unit(seen.gradient_unit), _stored_unit(state.gradient_unit)
    if unit != last_unit:
        memory.change_unit(blocks, last_unit / unit)
    clip = seen.factor * seen.gradient_unit
    return (1.0 if clip > 1 - _ROUNDING else clip) / unit, seen.gradient_unit / unit


def _stored_unit(gradient_unit: float) -> float:
    """S, a power of 2."""
    least, most = _USUAL
    usual = least <= gradient_unit <= most or gradient_unit == 0
    return 1.0 if usual else 2.0 ** round(math.log2(gradient_unit))
