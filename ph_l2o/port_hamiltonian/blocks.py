"""The tensors of a step in place, and what is remembered of each.

The memory of a tensor is a dictionary that lies in torch.optim's `state`: `fast` and `slow`, averages of the gradient,
`second`, v, and `momentum`, π, of the parameter's shape; `step`, the number of steps in it; `second_sum`, Σ v,
`momentum_square`, ‖π‖², and `theta_square`, ‖θ‖², after the last of them (NEW before the first). Of a rotated one all
that lies in the coordinates of its bases; beside it `gram`, L and R, `basis`, Q_L and Q_R, and `gram_unit`, the
gradient's unit in which L and R are.

While a tensor takes no part, its buffers are not touched. π stays as it is, with its energy; the gradient's unit
changes by a number, `gradient_factor` of `fast` and `slow` (of `second` its square), which goes into them when the
tensor takes part again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ph_l2o.optimizers.eigenbases import Eigenbases
from ph_l2o.port_hamiltonian.energy import DECAYS, SECOND_DECAY, averaging_weight
from ph_l2o.port_hamiltonian.state import MOMENTUM, SECOND, THETA

Array = NDArray[np.float64]
BUFFERS = ("fast", "slow", "second", "momentum")
_SUMS = ("second_sum", "momentum_square")
NEW = -1.0
foreach: Any = torch  # operations over lists, which torch's own optimizers use; their names are private
_DECAY_UNIT = 1e-3  # learning rate of AdamW with which a weight decay means the same


@dataclass(slots=True)
class Block:
    """A tensor that takes part in a step.

    Attributes:
        name: For the diagnostics.
        shape: Shape of the parameter.
        theta: Parameters, flat, as the step moves them.
        grad: Gradient, flat, of the same type.
        memory: See the module's text.
        flats: The four tensors of the memory, flat.
        rate: Factor of the gain in this step.
        weight_decay: The share rate · weight_decay / 1000 of θ goes in each step.
        home: Parameters, flat, as the model has them; `theta` unless that is turned.
    """

    name: str
    shape: tuple[int, ...]
    theta: Tensor
    grad: Tensor
    memory: dict[str, Any]
    flats: tuple[Tensor, ...]
    rate: float
    weight_decay: float
    home: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.home = self.theta


@dataclass(slots=True)
class Resting:
    """A tensor that has taken part before, and does not in this step.

    Attributes:
        memory: See the module's text.
    """

    memory: dict[str, Any]


def dtype_of(param: Tensor) -> torch.dtype:
    """Of what is remembered and computed for a parameter."""
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def memory_shapes(param: Tensor, bases: Eigenbases | None) -> dict[str, tuple[int, ...] | None]:
    """Keys of a parameter's memory, with the shapes of its tensors."""
    shapes: dict[str, tuple[int, ...] | None] = dict.fromkeys(
        ("step", *_SUMS, "theta_square", "start_square", "gradient_factor")
    )
    shapes |= dict.fromkeys(BUFFERS, tuple(param.shape))
    if bases is not None:
        shapes |= dict.fromkeys(("basis", "gram"), (1, sum(bases.sizes))) | {"gram_unit": None}
    return shapes


def new_memory(param: Tensor, bases: Eigenbases | None) -> dict[str, Any]:
    """Nothing seen yet."""
    like = torch.empty(param.shape, dtype=dtype_of(param), device=param.device)
    memory: dict[str, Any] = {"step": 0, **dict.fromkeys(_SUMS, 0.0), "gradient_factor": 1.0}
    memory |= dict.fromkeys(("theta_square", "start_square"), NEW)
    memory |= {name: torch.zeros_like(like) for name in BUFFERS}
    if bases is not None:
        basis = bases.identity(like.view(1, -1))
        memory |= {"basis": basis, "gram": torch.zeros_like(basis), "gram_unit": 0.0}
    return memory


def averaging_weights(active: Sequence[Block]) -> Array:
    """Weights of the gradient in each tensor's averages and in v, after one more step of it, `(T, 3)`."""
    rows, found = dict[int, list[float]](), []
    for block in active:
        count = block.memory["step"] = block.memory["step"] + 1
        if count not in rows:
            rows[count] = [averaging_weight(decay, count) for decay in (*DECAYS, SECOND_DECAY)]
        found.append(rows[count])
    return np.array(found)


def all_sums(active: Sequence[Block], sums: Array, weights: Array) -> Array:
    """Sums of a pass in the controller's order, with those that need no pass: ‖π‖² and Σ v; `(9, T)`.

    Of a θ that is not finite the squares count as 0.
    """
    second = np.array([block.memory["second_sum"] for block in active])
    second += weights * (sums[:, 0] - second)
    for block, value in zip(active, second.tolist(), strict=True):
        block.memory["second_sum"] = value
    found = np.empty((9, len(active)))
    found[:3], found[4], found[6:] = sums[:, :3].T, sums[:, 3], sums[:, 4:].T
    found[MOMENTUM], found[SECOND] = [block.memory["momentum_square"] for block in active], second
    found[THETA, ~np.isfinite(found[THETA])] = 0.0
    return found


def start_squares(active: Sequence[Block], squares: Array) -> Array:
    """‖θ‖² of each tensor when it first took part, `(T,)`, from what it is now."""
    for block, square in zip(active, squares.tolist(), strict=True):
        if block.memory["start_square"] == NEW:
            block.memory["start_square"] = square
    return np.array([block.memory["start_square"] for block in active])


def wake(memory: dict[str, Any]) -> None:
    """Put into the buffers of a tensor that has rested by how much the gradient's unit has changed meanwhile."""
    if memory["gradient_factor"] != 1:
        _change_unit(memory, memory["gradient_factor"])
        memory["gradient_factor"] = 1.0


def change_unit(active: Sequence[Block], resting: Sequence[Resting], change: float) -> None:
    """Express what is remembered of the gradient in another unit."""
    for block in active:
        _change_unit(block.memory, change)
    for tensor in resting:
        tensor.memory["gradient_factor"] *= change
    for tensor in (*active, *resting):
        tensor.memory["second_sum"] *= change * change


def _change_unit(memory: dict[str, Any], change: float) -> None:
    memory["fast"].mul_(change)
    memory["slow"].mul_(change)
    memory["second"].mul_(change).mul_(change)


def shrink(active: Sequence[Block], factor: float) -> None:
    """Put θ back into its ball, where rounding has put it outside."""
    if factor != 1:
        for block in active:
            block.theta.mul_(factor)


def decay(active: Sequence[Block]) -> Array:
    """Take weight decay's share of each tensor; what is left of 1, `(T,)`."""
    left = [max(1 - _DECAY_UNIT * block.rate * block.weight_decay, 0.0) for block in active]
    homes = [(block.home, x) for block, x in zip(active, left, strict=True) if x != 1]
    if homes:
        foreach._foreach_mul_(*map(list, zip(*homes, strict=True)))
    return np.array(left)


def remember(active: Sequence[Block], momentum_squares: Array | None, theta_squares: Array) -> None:
    """Keep ‖π‖² and ‖θ‖², each `(T,)`."""
    for block, theta in zip(active, theta_squares.tolist(), strict=True):
        block.memory["theta_square"] = theta if math.isfinite(theta) else 0.0
    if momentum_squares is not None:
        for block, momentum in zip(active, momentum_squares.tolist(), strict=True):
            block.memory["momentum_square"] = momentum


def theta_square(tensors: Iterable[Block | Resting]) -> float:
    """‖θ‖² over tensors, as it is remembered."""
    return sum(max(tensor.memory["theta_square"], 0.0) for tensor in tensors)


def kinetic_energy(tensors: Iterable[Block | Resting]) -> float:
    """½‖π‖² over tensors, as it was after the last step of each."""
    return 0.5 * sum(tensor.memory["momentum_square"] for tensor in tensors)
