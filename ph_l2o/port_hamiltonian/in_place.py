"""One step of the port-Hamiltonian optimizer in place: the same step as its pure `update`, for B = 1.

Three passes over the coordinates (`kernels.py`), and between them numbers for each tensor and for all. The numbers are
on the CPU, whatever the parameters are. The step scale is written s = root · q with q = (v + floor)^(-1/4), so that all
else about it are factors of sums.

What is remembered of the gradient is in units of S, which is 1 where the gradient is neither very small nor very large:
then the gradient is used as it is. g, v and q are in units of S too, and u = G / S.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ph_l2o.params import Layout
from ph_l2o.port_hamiltonian import blocks as memory
from ph_l2o.port_hamiltonian import controller, energy
from ph_l2o.port_hamiltonian.arithmetic import Numbers
from ph_l2o.port_hamiltonian.blocks import Array, Block, Resting
from ph_l2o.port_hamiltonian.passes import MakePasses
from ph_l2o.port_hamiltonian.state import GRADIENT, SECOND, THETA, PortHamiltonianState, Seen
from ph_l2o.port_hamiltonian.turned import Turned

_LEAST_RHO = 1e-20
_USUAL = (1e-6, 1e6)  # gradients' units for which S is 1
_ROUNDING = 1e-12
_SET = 1e-3  # more growth of ‖θ‖² than this between steps is no rounding
_POWERS = np.array([2, 2, 2, 0, 0, 2, 2, 2, 1])[:, None]  # of the gradient, in the sums
_ELSEWHERE = dict.fromkeys(("averages", "second", "momentum", "start_squares", "total_steps"))
_NOTHING_SEEN = PortHamiltonianState(
    **dict.fromkeys(PortHamiltonianState._fields, 0.0) | {"uses_loss": 1.0} | _ELSEWHERE
)
ACCOUNT = "account"  # in the memory of each tensor: the account of all, one tensor of these numbers
_NUMBERS = tuple(name for name in PortHamiltonianState._fields if name not in _ELSEWHERE)


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
    active: Sequence[Block],
    resting: Sequence[Resting],
    turned: Sequence[Turned],
    loss: float | None,
    state: PortHamiltonianState,
    make: MakePasses,
    ball: tuple[float, float],
) -> tuple[PortHamiltonianState, Report | None]:
    """One step; θ and what the blocks remember change in place.

    Args:
        network: The controller.
        active: The tensors that have a gradient, at least one.
        resting: Others that have taken part before.
        turned: Those of the active tensors that are seen in bases.
        loss: The loss at θ, or None.
        state: Numbers before the step.
        make: Makes the passes.
        ball: Budget and radius, see the pure optimizer.

    Returns:
        Numbers after the step, and what was done; None if the step was skipped.
    """
    passes = make(active)
    seen = energy.observe(passes.largest(), loss, state)
    if not seen.finite:
        return state._replace(skipped=state.skipped + 1), None
    factor, u = _units(active, resting, seen, state)

    # First pass: the gradient goes into its averages. Of the sums the controller makes the ports.
    weights = memory.averaging_weights(active)
    sums = memory.all_sums(active, passes.absorb(factor, weights), weights[:, -1]) / u**_POWERS
    layout = Layout(tuple(block.name for block in active), tuple(block.shape for block in active))
    sizes = Numbers.table(layout, controller.tensor_sizes, u)
    means = energy.compare_gradients(Numbers.total(sums[SECOND]), Numbers.total(sizes), seen, state)
    starts = memory.start_squares(active, sums[THETA])
    ports = controller.ports(network, sums, starts, sizes, *means, seen, state, layout)
    ports = ports._replace(rho=np.maximum(ports.rho, _LEAST_RHO))
    gain, floor = ports.scale(sums[SECOND] / sizes, means[0])
    gain = gain * [block.rate for block in active] * (sums[GRADIENT] > 0)
    root_squared = gain / np.sqrt(ports.rho)
    of_push, of_scale = np.sqrt(root_squared / u), np.sqrt(root_squared * u)  # h = of_push · q ĝ, s = of_scale · q

    # Second pass: what the force would do. Of it r⁺.
    predicted = np.array([floor / ports.rho * u**2, ports.mix]).T
    state, theta_square = _in_ball(state, active, resting, sums[THETA], ball)
    pulls = _pulls(turned, theta_square, state)
    squares, with_momentum, with_theta = passes.predict(factor, predicted, pulls).T
    squares = root_squared / u * squares
    at_rest = memory.kinetic_energy(resting)
    moving = state._replace(kinetic=memory.kinetic_energy(active))
    before = energy.energies_before(Numbers.total(squares), theta_square, seen, moving, at_rest)
    root_length = math.sqrt(before.length)
    keep = energy.inverse_inertia(ports.keep, gain / np.sqrt(floor), before, seen, state)
    spring = before.spring * root_length
    products = before.rescale * of_push * with_momentum - (spring * root_squared * with_theta if spring else 0.0)
    trust, share = energy.solve_for_r(float(keep @ products), float(keep @ squares), before)

    # Third pass: π and θ.
    memory.shrink(active, before.shrink)
    spring = keep * of_scale * (spring / before.shrink)  # it acts on what θ was
    force = keep * of_push * (trust / root_length)
    moves = np.array([keep * before.rescale, force, spring, of_scale * root_length]).T
    momentum_square, moved_square = passes.move(factor, predicted, moves, pulls).T
    for group, squares in [(group, group.land()) for group in turned]:  # all, before the host waits for one
        moved_square[group.places] = squares.to("cpu", torch.float64).numpy()
    memory.remember(active, momentum_square, moved_square * memory.decay(active) ** 2)
    kinetic = 0.5 * Numbers.total(momentum_square)
    pull = energy.spring_energy(memory.theta_square((*active, *resting)), state)
    account = energy.energy_after(trust, kinetic, pull, before, seen, state)
    after = energy.remember(state, seen, before, *means, account, kinetic + at_rest, trust, share)
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


def new_account() -> Tensor:
    """The numbers before the first step, as the drop-in keeps them: one tensor in the state of all parameters."""
    return _tensor(_NOTHING_SEEN)


def state_of(account: Tensor | None) -> PortHamiltonianState:
    """The numbers in an account; without one, those before the first step."""
    if account is None:
        return _NOTHING_SEEN
    return _NOTHING_SEEN._replace(**dict(zip(_NUMBERS, account.tolist(), strict=True)))


def write(account: Tensor, state: PortHamiltonianState) -> None:
    """Put the numbers into an account."""
    account.copy_(_tensor(state))


def account_of(memories: Sequence[dict[str, Any]]) -> Tensor | None:
    """The account of these tensors, made one object again where it has been copied; None if none has one.

    Tensors whose account is another one, of another optimizer's training, join that which has taken most steps.
    """
    found = {id(known[ACCOUNT]): known[ACCOUNT] for known in memories if ACCOUNT in known}
    if len(found) == 1 and (only := next(iter(found.values()))).device.type == "cpu":
        return only
    if not found:
        return None
    states = {key: state_of(account) for key, account in found.items()}
    most = max(states, key=lambda key: states[key].step)
    account, state = found[most].to("cpu", torch.float64), states[most]
    for known in memories:
        other = states[id(known.get(ACCOUNT, found[most]))]
        if other != states[most]:
            change = _stored_unit(other.gradient_unit) / _stored_unit(state.gradient_unit)
            memory.change_unit((), (Resting(known),), change)
            state = state._replace(energy=state.energy + 0.5 * known["momentum_square"])
            known["theta_square"] = memory.NEW  # to this ball
        known[ACCOUNT] = account
    write(account, state)
    return account


def _in_ball(
    state: PortHamiltonianState,
    active: Sequence[Block],
    resting: Sequence[Resting],
    squares: Array,
    ball: tuple[float, float],
) -> tuple[PortHamiltonianState, float]:
    """The ball as it has to be for these tensors, and their ‖θ‖².

    R₀ grows where a tensor is new, and where one is larger than the last step has left it: then something else has set
    it, and that is not taken back.
    """
    budget, radius = ball
    before = [block.memory["theta_square"] for block in active]
    memory.remember(active, None, squares)
    tensors = (*active, *resting)
    square, size = memory.theta_square(tensors), sum(tensor.memory["momentum"].numel() for tensor in tensors)
    if not state.stiffness:
        account, stiffness, rest_radius = energy.at_the_start(square, float(size), budget, radius)
        return state._replace(energy=account, stiffness=stiffness, rest_radius=rest_radius), square
    wanted = 0.0
    if memory.NEW in before:
        wanted = energy.rest_radius_for(square, float(size), radius)
    elif any(now > old * (1 + _SET) for now, old in zip(squares.tolist(), before, strict=True)):
        wanted = math.sqrt(square)
    return state._replace(rest_radius=max(state.rest_radius, wanted)), square


def _pulls(turned: Sequence[Turned], theta_square: float, state: PortHamiltonianState) -> bool:
    """Whether the spring acts; then θ is turned too."""
    pulls = math.sqrt(theta_square) > state.rest_radius
    if pulls:
        for group in turned:
            group.turn_theta()
    return pulls


def _tensor(state: PortHamiltonianState) -> Tensor:
    return torch.tensor([getattr(state, name) for name in _NUMBERS], dtype=torch.float64, device="cpu")


def _units(
    active: Sequence[Block], resting: Sequence[Resting], seen: Seen, state: PortHamiltonianState
) -> tuple[float, float]:
    """From the gradient to what is remembered of it, which gets the unit S; u."""
    unit, last_unit = _stored_unit(seen.gradient_unit), _stored_unit(state.gradient_unit)
    if unit != last_unit:
        memory.change_unit(active, resting, last_unit / unit)
    clip = seen.factor * seen.gradient_unit
    return (1.0 if clip > 1 - _ROUNDING else clip) / unit, seen.gradient_unit / unit


def _stored_unit(gradient_unit: float) -> float:
    """S, a power of 2."""
    least, most = _USUAL
    usual = least <= gradient_unit <= most or gradient_unit == 0
    return 1.0 if usual else 2.0 ** round(math.log2(gradient_unit))
