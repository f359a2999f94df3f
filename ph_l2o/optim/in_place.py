"""One step of the port-Hamiltonian optimizer in place: the same step as its pure `update`, for B = 1.

Three passes over the coordinates (`ph_l2o/optim/kernels.py`), and between them numbers for each tensor, by the same
functions as in `update`. The numbers are float64 and on the CPU, whatever the parameters are. The step scale is written
s = root · q with q = (v + floor)^(-1/4), so that all else about it are factors of sums.

What is remembered of the gradient is in units of S, which is 1 where the gradient is neither very small nor very large:
then the gradient is used as it is. g, v and q are in units of S too, and u = G / S.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ph_l2o.optim.kernels import AVERAGES, Numbers, Slot
from ph_l2o.optimizers import controller
from ph_l2o.optimizers import port_hamiltonian as scheme
from ph_l2o.optimizers.port_hamiltonian import PortHamiltonian, PortHamiltonianState
from ph_l2o.params import Layout

_LEAST_RHO = 1e-20
_USUAL = (1e-6, 1e6)  # gradients' units for which S is 1
_ROUNDING = 1e-12
_POWERS = np.array([2, 2, 2, 0, 0, 2, 2, 2, 1])  # of the gradient, in the sums of `absorb`


class Passes(Protocol):
    """See `ph_l2o.optim.kernels.Plain`."""

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
    return {"step": 0, **zeros}


def new_numbers() -> PortHamiltonianState:
    """The account before it is filled; the fields of coordinates are empty."""
    none = torch.zeros(1, dtype=torch.float64)
    numbers = PortHamiltonianState(*[none] * len(PortHamiltonianState._fields))
    empty = none[:0]
    return numbers._replace(averages=empty, second=empty, momentum=empty, uses_loss=none + 1)


@torch.no_grad()
def step(
    learned: PortHamiltonian, slots: Sequence[Slot], loss: Tensor | None, state: PortHamiltonianState, kernels: Kernels
) -> tuple[PortHamiltonianState, Report | None]:
    """One step; θ and what the slots remember change in place.

    Args:
        learned: The optimizer, in float64 on the CPU.
        slots: All tensors, at least one of which has a gradient.
        loss: Shape `(1,)`, float64 on the CPU, or None.
        state: Numbers before the step.
        kernels: The passes.

    Returns:
        Numbers after the step, and what was done; None if the step was skipped.
    """
    active = [slot for slot in slots if slot.grad is not None]
    resting = [slot for slot in slots if slot.grad is None]
    passes = kernels(active)
    seen = scheme.observe(_number(passes.largest()), loss, state)
    if not seen.fine.item():
        return state._replace(skipped=state.skipped + 1), None
    gradient_unit = seen.gradient_unit.item()
    unit, last_unit = _stored_unit(gradient_unit), _stored_unit(state.gradient_unit.item())
    if unit != last_unit:
        _rescale(slots, last_unit / unit)
    u, clip = gradient_unit / unit, seen.factor.item() * gradient_unit
    factor = (1.0 if clip > 1 - _ROUNDING else clip) / unit

    absorbed = passes.absorb(factor, _weights(active)) / u**_POWERS
    sums = torch.from_numpy(absorbed).T[None]
    layout = Layout(tuple(slot.name for slot in active), tuple(slot.shape for slot in active))
    sizes = layout.table(controller.sizes, sums)
    second_mean, reference = scheme.compare_gradients(sums, sizes, seen, state)
    ports = controller.ports(learned.controller, sums, sizes, second_mean, reference, seen, state, layout)
    log_gain, mix, keep, rho, lean = torch.cat(ports).numpy()
    rho = np.maximum(rho, _LEAST_RHO)
    floor = (1 - rho) * (absorbed[:, controller.SECOND] / layout.sizes + scheme.TINY)
    gain = np.exp(log_gain.clip(*scheme.LOG_GAIN_RANGE)) * [slot.lr for slot in active]
    root_squared = gain / np.sqrt(rho)
    of_push, of_scale = np.sqrt(root_squared / u), np.sqrt(root_squared * u)  # h = of_push · q ĝ, s = of_scale · q

    predicted = np.stack([floor / rho * u**2, mix], 1)
    squares, with_momentum, with_theta = passes.predict(factor, predicted).T
    squares = root_squared / u * squares
    # Each tensor's stiffness is `stiff` times that of the account.
    stiffness = state.stiffness.item()
    stiff = 1 + np.array([slot.weight_decay for slot in active]) / stiffness
    rest_pull = _rest_pull(resting, stiffness)
    square = float(stiff @ absorbed[:, controller.THETA]) + 2 * rest_pull / stiffness
    before = learned.settle(_number(float(squares.sum())), _number(square), seen, state)
    root_length, rescale = math.sqrt(before.length.item()), before.rescale.item()
    bound = torch.from_numpy(gain / np.sqrt(floor) * stiff)[None]
    damped = scheme.damped(torch.from_numpy(keep)[None], bound, before, seen, state)[0].numpy()
    spring = stiffness * root_length * stiff
    products = rescale * of_push * with_momentum - spring * root_squared * with_theta
    trust, share = scheme.solve(_number(float(damped @ products)), _number(float(damped @ squares)), before)

    fit = before.fit.item()
    if fit != 1:  # θ ← fit θ + …, where the spring acts on what θ was
        for slot in active:
            slot.theta.mul_(fit)
        spring = spring / fit if fit else 0 * spring
    force = damped * of_push * (trust.item() / root_length)
    moves = np.stack([damped * rescale, force, damped * of_scale * spring, of_scale * root_length], 1)
    momentum_square, theta_square = passes.move(factor, predicted, moves).T
    kinetic = _number(0.5 * momentum_square.sum() + _rest_kinetic(resting, rescale))
    pull = _number(0.5 * stiffness * (stiff @ theta_square) + rest_pull)
    energy = scheme.paid(trust, kinetic, pull, before, seen, state)
    columns = {"lr": gain, "damping": 1 / keep - 1, "mix": mix, "rho": rho, "lean": lean}
    report = Report(layout.names, columns, pull.item(), (trust * trust * before.phi).item())
    return scheme.remember(state, seen, before, second_mean, reference, energy, kinetic, trust, share), report


def diagnostics(state: PortHamiltonianState, report: Report | None) -> dict[str, Any]:
    """Plain numbers about the last step; see `ph_l2o.optim.PortHamiltonian.diagnostics`."""
    names = ("energy", "kinetic", "trust", "loss_unit", "gradient_unit")
    found: dict[str, Any] = {name: getattr(state, name).item() for name in names}
    found |= {"steps": int(state.step.item()), "skipped": int(state.skipped.item())}
    found["uses_loss"] = bool(state.uses_loss.item())
    found |= {"spring": 0.0, "tank": found["energy"], "tensors": {}}
    if report is None:
        return found
    found["spring"] = report.spring
    found["tank"] -= found["kinetic"] + report.spring + report.r_squared
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
    decays, rows = (*scheme.DECAYS, scheme.SECOND_DECAY), dict[int, list[float]]()
    found = []
    for slot in active:
        assert slot.memory is not None
        count = slot.memory["step"] = slot.memory["step"] + 1
        if count not in rows:
            rows[count] = [(1 - d) / (1 - d**count) for d in decays]
        found.append(rows[count])
    return np.array(found)


def _rescale(slots: Sequence[Slot], change: float) -> None:
    """Express what is remembered of the gradient in another unit."""
    for slot in slots:
        if slot.memory is not None:
            slot.memory["fast"].mul_(change)
            slot.memory["slow"].mul_(change)
            slot.memory["second"].mul_(change).mul_(change)


def _rest_pull(resting: Sequence[Slot], stiffness: float) -> float:
    """Spring energy of the tensors that take no part."""
    return sum(0.5 * (stiffness + slot.weight_decay) * square(slot.theta) for slot in resting)


def _rest_kinetic(resting: Sequence[Slot], rescale: float) -> float:
    """Express the momenta of the tensors that take no part in the loss's new unit; their kinetic energy."""
    kinetic = 0.0
    for slot in resting:
        if slot.memory is not None:
            kinetic += 0.5 * square(slot.flats[-1].mul_(rescale))
    return kinetic


def _number(x: float) -> Tensor:
    """As the functions of `ph_l2o.optimizers.port_hamiltonian` take it, `(1,)`."""
    return torch.tensor([x], dtype=torch.float64)
