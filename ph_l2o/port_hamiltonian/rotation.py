"""The drop-in's matrices in the coordinates of their bases, for `PortHamiltonianKronecker`.

What is remembered of a rotated parameter lies in these coordinates; beside it `gram`, L and R, `basis`, Q_L and Q_R,
and `gram_unit`, the gradient's unit in which L and R are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ph_l2o.optimizers.eigenbases import Eigenbases
from ph_l2o.params import Layout
from ph_l2o.port_hamiltonian.kernels import Slot
from ph_l2o.port_hamiltonian.kronecker import bases_of, renewed


@dataclass
class Rotation:
    """Which parameters are rotated, and how often they get new bases.

    Args:
        longest: Longest side that is rotated.
        every: Steps between power iterations.
    """

    longest: int
    every: int

    def bases(self, shape: tuple[int, ...]) -> Eigenbases | None:
        """What to do with a parameter of this shape; None if nothing."""
        bases = bases_of(Layout(("",), (shape,)), self.longest)
        return bases if bases.sizes else None

    def begin(self, memory: dict[str, Any], bases: Eigenbases, like: Tensor) -> None:
        """Remember that nothing has been seen yet."""
        memory["basis"] = bases.identity(like[None])
        memory["gram"], memory["gram_unit"] = torch.zeros_like(memory["basis"]), 0.0


class Turned:
    """A parameter during a step.

    Args:
        rotation: The settings.
        bases: Of the parameter.
        theta: Flat, of the type in which it is computed.
        grad: Likewise.
        memory: What is remembered of it.

    Attributes:
        theta: A copy, in the coordinates of the bases, which the step changes.
        grad: A copy, likewise.
    """

    def __init__(self, rotation: Rotation, bases: Eigenbases, theta: Tensor, grad: Tensor, memory: dict[str, Any]):
        self._rotation, self._bases, self._memory, self._plain_grad = rotation, bases, memory, grad
        self._start = bases.rotated(theta[None], memory["basis"])
        self.theta = self._start[0].clone()
        self.grad = bases.rotated(grad[None], memory["basis"])[0]

    def move(self) -> Tensor:
        """What the step has added, in the coordinates of the parameter, flat."""
        return self._bases.rotated(self.theta[None] - self._start, self._memory["basis"], back=True)[0]

    def renew(self, slot: Slot, unit: float) -> None:
        """Take the gradient into L and R, whose unit becomes `unit`, and turn what is remembered to new bases."""
        bases, memory, old = self._bases, self._memory, self._memory["basis"]
        step = torch.tensor([float(memory["step"])], dtype=torch.float64)
        numbers = torch.tensor([unit, memory["gram_unit"] / unit], dtype=old.dtype, device=old.device)
        grad, every = self._plain_grad[None], self._rotation.every
        memory["gram"], new, is_new = renewed(bases, memory["gram"], old, grad, numbers[:1], numbers[1:], step, every)
        memory["gram_unit"] = unit
        if not is_new.item():
            return
        fast, slow, second, momentum = slot.flats
        for x in (fast, slow, momentum):
            x.copy_(bases.moved(x[None], old, new)[0])
        second.copy_(bases.moved_variances(second[None], old, new)[0])
        square = torch.dot(momentum, momentum).item()
        if square > memory["momentum_square"]:  # by rounding; energies must not grow
            momentum.mul_((memory["momentum_square"] / square) ** 0.5)
        memory["basis"] = new
