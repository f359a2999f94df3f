"""One step of the port-Hamiltonian optimizer in place: the same step as its pure `update`, for B = 1.

Three passes over the coordinates (`kernels.py`), and between them numbers for each tensor (`single_problem.py`). The
numbers are on the CPU, whatever the parameters are. The step scale is written s = root · q with q = (v + floor)^(-1/4),
so that all else about it are factors of sums.

What is remembered of the gradient is in units of S, which is 1 where the gradient is neither very small nor very large:
then the gradient is used as it is. g, v and q are in units of S too, and u = G / S.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ph_l2o.params import Layout
from ph_l2o.port_hamiltonian import controller
from ph_l2o.port_hamiltonian import diagonal as scheme
from ph_l2o.port_hamiltonian import single_problem as numbers
from ph_l2o.port_hamiltonian.energy import DECAYS, SECOND_DECAY
from ph_l2o.port_hamiltonian.kernels import AVERAGES, Numbers, Slot
from ph_l2o.port_hamiltonian.single_problem import State

_LEAST_RHO = 1e-20
_USUAL = (1e-6, 1e6)  # gradients' units for which S is 1
_ROUNDING = 1e-12
_POWERS = np.array([2, 2, 2, 0, 0, 2, 2, 2, 1])  # of the gradient, in the sums of `absorb`


class Passes(Protocol):
    """See `ph_l2o.port_hamiltonian.kernels.Plain`."""

    def largest(self) -> float: ...
    def absorb(self, factor: float, weights: Numbers, /) -> Numbers: ...
    def predict(self, factor: float, numbers: Numbers, /) -> Numbers: ...
    def move(self, factor: float, predicted: Numbers, numbers: Numbers, /) -> Numbers: ...


Kernels = Callable[[Sequence[Slot]], Passes]


class Report(NamedTuple):
    """What happened in a step, for `diagnostics`.

    Attributes:
        names: Of the tensors.
        columns: What the controller did for each, by name.
        spring: Energy of the springs.
        r_squared: r⁺².
    """

    names: tuple[str, ...]
    columns: dict[str, Numbers]
    spring: float
    r_squared: float


def dtype_of(param: Tensor) -> torch.dtype:
    """Of what is remembered and computed for a parameter."""
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def remembered(x: Tensor, param: Tensor) -> Tensor:
    """A copy of a tensor of a loaded memory, where and as it is needed."""
    return x.detach().to(param.device, dtype_of(param)).clone(memory_format=torch.contiguous_format)


def new_memory(param: Tensor) -> dict[str, Any]:
    """Nothing seen yet."""
    zeros = {name: torch.zeros(param.shape, dtype=dtype_of(param), device=param.device) for name in AVERAGES}
    return {"step": 0, "second_sum": 0.0, "momentum_square": 0.0, **zeros}


@torch.no_grad()
def step(
    network: numbers.Controller, slots: Sequence[Slot], loss: float | None, state: State, kernels: Kernels
) -> tuple[State, Report | None]:
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
    seen = numbers.observe(passes.largest(), loss, state)
    if seen is None:
        return replace(state, skipped=state.skipped + 1), None
    unit, last_unit = _stored_unit(seen.gradient_unit), _stored_unit(state.gradient_unit)
    if unit != last_unit:
        _rescale(slots, last_unit / unit)
    u, clip = seen.gradient_unit / unit, seen.factor * seen.gradient_unit
    factor = (1.0 if clip > 1 - _ROUNDING else clip) / unit

    weights = _weights(active)
    sums = _completed(active, passes.absorb(factor, weights), weights[:, -1]) / u**_POWERS
    layout = Layout(tuple(slot.name for slot in active), tuple(slot.shape for slot in active))
    sizes = np.array(layout.sizes)
    mean, reference = numbers.compare_gradients(sums, sizes, seen, state)
    log_gain, mix, keep, rho, lean = network.ports(sums, mean, reference, seen, state, layout)
    rho = np.maximum(rho, _LEAST_RHO)
    floor = (1 - rho) * (sums[:, controller.SECOND] / sizes + scheme.TINY)
    gain = np.exp(log_gain.clip(*scheme.LOG_GAIN_RANGE)) * [slot.lr for slot in active]
    root_squared = gain / np.sqrt(rho)
    of_push, of_scale = np.sqrt(root_squared / u), np.sqrt(root_squared * u)  # h = of_push · q ĝ, s = of_scale · q

    predicted = np.stack([floor / rho * u**2, mix], 1)
    squares, with_momentum, with_theta = passes.predict(factor, predicted).T
    squares = root_squared / u * squares
    # Each tensor's stiffness is `stiff` times that of the account.
    stiff = 1 + np.array([slot.weight_decay for slot in active]) / state.stiffness
    rest_pull = _rest_pull(resting, state.stiffness)
    square = float(stiff @ sums[:, controller.THETA]) + 2 * rest_pull / state.stiffness
    before = numbers.settle(float(squares.sum()), square, seen, state)
    root_length = math.sqrt(before.length)
    damped = keep / (1 + keep * (state.stiffness * before.length) * (gain / np.sqrt(floor)) * stiff)
    spring = state.stiffness * root_length * stiff
    products = before.rescale * of_push * with_momentum - spring * root_squared * with_theta
    trust, share = numbers.solve(float(damped @ products), float(damped @ squares), before)

    if before.fit != 1:  # θ ← fit θ + …, where the spring acts on what θ was
        for slot in active:
            slot.theta.mul_(before.fit)
        spring = spring / before.fit if before.fit else 0 * spring
    force = damped * of_push * (trust / root_length)
    moves = np.stack([damped * before.rescale, force, damped * of_scale * spring, of_scale * root_length], 1)
    momentum_square, theta_square = passes.move(factor, predicted, moves).T
    for slot, value in zip(active, momentum_square.tolist(), strict=True):
        assert slot.memory is not None
        slot.memory["momentum_square"] = value
    kinetic = 0.5 * float(momentum_square.sum()) + _rest_kinetic(resting, before.rescale)
    pull = 0.5 * state.stiffness * float(stiff @ theta_square) + rest_pull
    after = State(
        step=seen.step,
        gradient_unit=seen.gradient_unit,
        second_mean=mean,
        reference=reference,
        loss_start=seen.loss_start,
        loss_fast=seen.loss_fast,
        loss_slow=seen.loss_slow,
        loss_unit=before.loss_unit,
        uses_loss=float(seen.uses_loss),
        energy=numbers.paid(trust, kinetic, pull, before, seen, state),
        kinetic=kinetic,
        stiffness=state.stiffness,
        trust=trust,
        share=share,
        skipped=state.skipped,
    )
    columns = {"lr": gain, "damping": 1 / keep - 1, "mix": mix, "rho": rho, "lean": lean}
    return after, Report(layout.names, columns, pull, trust * trust * before.phi)


def diagnostics(state: State, report: Report | None) -> dict[str, Any]:
    """Plain numbers about the last step; see `ph_l2o.optim.PortHamiltonian.diagnostics`."""
    names = ("energy", "kinetic", "trust", "loss_unit", "gradient_unit")
    found: dict[str, Any] = {name: getattr(state, name) for name in names}
    found |= {"steps": int(state.step), "skipped": int(state.skipped), "uses_loss": state.uses_loss > 0}
    found |= {"spring": 0.0, "tank": state.energy, "tensors": {}}
    if report is None:
        return found
    found["spring"] = report.spring
    found["tank"] -= state.kinetic + report.spring + report.r_squared
    lists = {key: column.tolist() for key, column in report.columns.items()}
    found["tensors"] = {name: {key: x[k] for key, x in lists.items()} for k, name in enumerate(report.names)}
    return found


def square(theta: Tensor) -> float:
    """‖θ‖² of a flat tensor."""
    return torch.dot(theta, theta).item()


def _stored_unit(gradient_unit: float) -> float:
    """S, a power of 2."""
    least, most = _USUAL
    usual = least <= gradient_unit <= most or gradient_unit == 0
    return 1.0 if usual else 2.0 ** round(math.log2(gradient_unit))


def _weights(active: Sequence[Slot]) -> Numbers:
    """Weights of the gradient in each tensor's averages, after one more step of it, `(T, 3)`."""
    decays, rows = (*DECAYS, SECOND_DECAY), dict[int, list[float]]()
    found = []
    for slot in active:
        assert slot.memory is not None
        count = slot.memory["step"] = slot.memory["step"] + 1
        if count not in rows:
            rows[count] = [(1 - d) / (1 - d**count) for d in decays]
        found.append(rows[count])
    return np.array(found)


def _completed(active: Sequence[Slot], sums: Numbers, weights: Numbers) -> Numbers:
    """Sums in the order that the controller has, with those that need no pass: ‖π‖² and Σ v; `(T, 9)`."""
    memories = [slot.memory for slot in active if slot.memory is not None]
    second = np.array([memory["second_sum"] for memory in memories])
    second += weights * (sums[:, 0] - second)
    for memory, value in zip(memories, second.tolist(), strict=True):
        memory["second_sum"] = value
    momentum = np.array([memory["momentum_square"] for memory in memories])
    return np.column_stack([sums[:, :3], momentum, sums[:, 3], second, sums[:, 4:]])


def _rescale(slots: Sequence[Slot], change: float) -> None:
    """Express what is remembered of the gradient in another unit."""
    for slot in slots:
        if slot.memory is not None:
            slot.memory["fast"].mul_(change)
            slot.memory["slow"].mul_(change)
            slot.memory["second"].mul_(change).mul_(change)
            slot.memory["second_sum"] *= change * change


def _rest_pull(resting: Sequence[Slot], stiffness: float) -> float:
    """Spring energy of the tensors that take no part."""
    return sum(0.5 * (stiffness + slot.weight_decay) * square(slot.theta) for slot in resting)


def _rest_kinetic(resting: Sequence[Slot], rescale: float) -> float:
    """Express the momenta of the tensors that take no part in the loss's new unit; their kinetic energy."""
    kinetic = 0.0
    for slot in resting:
        if slot.memory is not None:
            slot.flats[-1].mul_(rescale)
            slot.memory["momentum_square"] *= rescale * rescale
            kinetic += 0.5 * slot.memory["momentum_square"]
    return kinetic
