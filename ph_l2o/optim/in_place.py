"""One step of the port-Hamiltonian optimizer in place: the same step as its pure `update`, for B = 1.

Three passes over the coordinates (`ph_l2o/optim/kernels.py`), and between them numbers for each tensor, by the same
functions as in `update`. The numbers are float64 and on the CPU, whatever the parameters are. The step scale is written
s = root · q with q = (v + floor)^(-1/4), so that the numbers of a tensor are few, and none of them is in q but floor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ph_l2o.optim.kernels import AVERAGES, Slot
from ph_l2o.optimizers import controller
from ph_l2o.optimizers import port_hamiltonian as scheme
from ph_l2o.optimizers.port_hamiltonian import PortHamiltonian, PortHamiltonianState
from ph_l2o.params import Layout

_LEAST_RHO = 1e-20


class Passes(Protocol):
    """See `ph_l2o.optim.kernels.Plain`."""

    def absorb(self, factor: float, weights: Tensor, /) -> Tensor: ...
    def predict(self, factor: float, numbers: Tensor, /) -> Tensor: ...
    def move(self, factor: float, predicted: Tensor, numbers: Tensor, /) -> Tensor: ...


Kernels = Callable[[Sequence[Slot]], Passes]


class Report(NamedTuple):
    """What the controller did for each tensor of a step, `(T,)`; see `diagnostics`."""

    names: tuple[str, ...]
    gain: Tensor
    damping: Tensor
    ports: controller.Ports
    spring: Tensor  # energy, `(1,)`
    r_squared: Tensor  # `(1,)`


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
    seen = scheme.observe(_largest(active), loss, state)
    if not seen.fine.item():
        return state._replace(skipped=state.skipped + 1), None
    factor, change = seen.factor.item(), seen.change.item()
    if change != 1:
        _rescale(slots, change)
    layout = Layout(tuple(slot.name for slot in active), tuple(slot.shape for slot in active))
    passes = kernels(active)

    sums = passes.absorb(factor, _weights(active)).T[None]
    sizes = layout.table(controller.sizes, sums)
    second_mean, reference = scheme.compare_gradients(sums, sizes, seen, state)
    ports = controller.ports(learned.controller, sums, sizes, second_mean, reference, seen, state, layout)
    floor = (1 - ports.rho) * (sums[:, controller.SECOND] / sizes + scheme.TINY)
    rho = ports.rho.clamp_min(_LEAST_RHO)
    options = torch.tensor([[slot.lr for slot in active], [slot.weight_decay for slot in active]], dtype=torch.float64)
    gain = options[:1] * ports.log_gain.clamp(*scheme.LOG_GAIN_RANGE).exp()
    root_squared = gain * rho.rsqrt()
    root = root_squared.sqrt()

    predicted = torch.cat([floor / rho, ports.mix]).T.contiguous()
    squares, with_momentum, with_theta = passes.predict(factor, predicted).T[:, None]
    # Each tensor's stiffness is `stiff` times that of the account.
    stiff = 1 + options[1:] / state.stiffness
    rest_pull = _rest_pull(resting, state)
    square = (stiff * sums[:, controller.THETA]).sum(1) + 2 * rest_pull / state.stiffness
    squares = root_squared * squares
    before = learned.settle(squares.sum(1), square, seen, state)
    root_length = before.length.sqrt()
    keep = scheme.damped(ports.keep, gain * floor.rsqrt() * stiff, before, seen, state)
    spring = state.stiffness * root_length * stiff
    products = before.rescale * root * with_momentum - spring * root_squared * with_theta
    trust, share = scheme.solve((keep * products).sum(1), (keep * squares).sum(1), before)

    fit, kept = before.fit.item(), keep * root
    if fit != 1:  # θ ← fit θ + …, where the spring acts on what θ was
        for slot in active:
            slot.theta.mul_(fit)
        spring = spring / fit if fit else 0 * spring
    columns = [keep * before.rescale, kept * (trust / root_length), kept * spring, root * root_length]
    after = passes.move(factor, predicted, torch.cat(columns).T.contiguous())
    momentum_square, theta_square = after.T[:, None]
    kinetic = 0.5 * momentum_square.sum(1) + _rest_kinetic(resting, before.rescale.item())
    pull = 0.5 * state.stiffness * (stiff * theta_square).sum(1) + rest_pull
    energy = scheme.paid(trust, kinetic, pull, before, seen, state)
    report = Report(layout.names, gain[0], 1 / ports.keep[0] - 1, ports, pull, trust * trust * before.phi)
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
    found["spring"] = report.spring.item()
    found["tank"] -= found["kinetic"] + found["spring"] + report.r_squared.item()
    mix, rho, lean = (getattr(report.ports, name)[0].tolist() for name in ("mix", "rho", "lean"))
    columns = zip(report.gain.tolist(), report.damping.tolist(), mix, rho, lean, strict=True)
    keys = ("lr", "damping", "mix", "rho", "lean")
    found["tensors"] = {name: dict(zip(keys, row, strict=True)) for name, row in zip(report.names, columns, strict=True)}
    return found


def square(theta: Tensor) -> float:
    """‖θ‖² of a flat tensor."""
    return torch.dot(theta, theta).item()


def _largest(active: Sequence[Slot]) -> Tensor:
    """Largest absolute value of the gradient, `(1,)`; NaN if any is."""
    extremes = [x for slot in active for x in slot.grad.aminmax()]  # type: ignore[union-attr]
    if len({x.device for x in extremes}) > 1:
        extremes = [x.cpu() for x in extremes]
    return torch.stack(extremes).abs().amax().to("cpu", torch.float64)[None]


def _weights(active: Sequence[Slot]) -> Tensor:
    """Weights of the gradient in each tensor's averages, after one more step of it, `(T, 3)`."""
    decays, rows = (*scheme.DECAYS, scheme.SECOND_DECAY), dict[int, list[float]]()
    found = []
    for slot in active:
        assert slot.memory is not None
        count = slot.memory["step"] = slot.memory["step"] + 1
        if count not in rows:
            rows[count] = [(1 - d) / (1 - d**count) for d in decays]
        found.append(rows[count])
    return torch.tensor(found, dtype=torch.float64)


def _rescale(slots: Sequence[Slot], change: float) -> None:
    """Express what is remembered in the gradient's new unit."""
    for slot in slots:
        if slot.memory is not None:
            slot.memory["fast"].mul_(change)
            slot.memory["slow"].mul_(change)
            slot.memory["second"].mul_(change).mul_(change)


def _rest_pull(resting: Sequence[Slot], state: PortHamiltonianState) -> Tensor:
    """Spring energy of the tensors that take no part."""
    return sum(
        (0.5 * (state.stiffness + slot.weight_decay) * square(slot.theta) for slot in resting),
        torch.zeros_like(state.energy),
    )


def _rest_kinetic(resting: Sequence[Slot], rescale: float) -> float:
    """Express the momenta of the tensors that take no part in the loss's new unit; their kinetic energy."""
    kinetic = 0.0
    for slot in resting:
        if slot.memory is not None:
            kinetic += 0.5 * square(slot.memory["momentum"].view(-1).mul_(rescale))
    return kinetic
