"""Tensors of a step in place in the coordinates of their bases, equal ones together.

Between `Turned(…)` and `land` the blocks have the turned gradient, and a place for the move from 0: turning keeps ‖θ‖,
and all else that a step asks of θ is the pull of the spring. Only where that acts, far out in the ball, `turn_theta`
puts θ itself there, and it is moved.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ph_l2o.optimizers.eigenbases import Eigenbases
from ph_l2o.port_hamiltonian.bases import EARLY, FLOOR, in_new_bases, into_range, weights
from ph_l2o.port_hamiltonian.blocks import Block, foreach

LENGTH = 2**17  # coordinates that are turned at once on a CPU, so that what one operation leaves is in its cache


class Turned:
    """Tensors of one shape, device and type, which have taken part in equally many steps, the last of them together.

    Args:
        blocks: The tensors, at least one; their `grad` and `theta` change to those of the bases.
        places: Which of the tensors of the step they are.
        bases: Of each of them.
        frequency: Steps between power iterations.
    """

    def __init__(self, blocks: Sequence[Block], places: Sequence[int], bases: Eigenbases, frequency: int):
        self._blocks, self.places, self._bases, self._frequency = blocks, list(places), bases, frequency
        self._memories = [block.memory for block in blocks]
        self._basis = self._together("basis")
        self._turning = bases.opened(self._basis)
        self._grads = torch.stack([block.grad for block in blocks])
        self._largest = _largest(self._grads)
        grads = bases.rotated(self._grads.mul_(into_range(self._largest)), self._turning)
        self._thetas, self._start = torch.empty_like(grads), None
        for block, grad, theta in zip(blocks, grads, self._thetas, strict=True):
            block.grad, block.theta = grad, theta

    def turn_theta(self) -> None:
        """Put θ where the step moves it."""
        self._start = self._bases.rotated(torch.stack([block.home for block in self._blocks]), self._turning)
        self._thetas.copy_(self._start)

    def land(self) -> Tensor:
        """Take the move back to the parameters; ‖θ‖² of each tensor, `(T,)`, where they are."""
        moves = self._thetas if self._start is None else self._thetas - self._start
        homes = [block.home for block in self._blocks]
        foreach._foreach_add_(homes, list(self._bases.rotated(moves, self._turning, back=True)))
        return _squares(homes)

    def renew(self, gradient_unit: float) -> None:
        """Take the gradient into L and R, whose unit becomes G, and turn what is remembered to new bases."""
        step, change = self._memories[0]["step"], self._memories[0]["gram_unit"] / gradient_unit
        for memory in self._memories:
            memory["gram_unit"] = gradient_unit
        gram, grads = self._together("gram"), self._grads
        keep, scale = weights(torch.tensor([step], dtype=torch.float64, device="cpu"), change)
        gram.mul_(keep.item())
        grads.mul_(scale.item() / self._largest.clamp_min(gradient_unit))
        self._bases.add_products(gram, self._turning, grads)
        if step == 1:
            gram = self._turn(*self._bases.first(gram, grads))
        elif step in EARLY or step % self._frequency == 0:
            gram = self._turn(*self._bases.improved(gram, self._turning, FLOOR)[:2])
        self._keep("gram", gram)

    def _turn(self, new: Tensor, gram: Tensor) -> Tensor:
        """Take new bases, and what is remembered to them; L and R."""
        columns = list(zip(*(block.flats for block in self._blocks), strict=True))
        *averages, second, momentum = map(torch.stack, columns)
        energies = [0.5 * memory["momentum_square"] for memory in self._memories]
        kinetic = torch.tensor(energies, dtype=momentum.dtype).to(momentum.device, non_blocking=True)
        turned, *others = in_new_bases(self._bases, self._basis, new, averages, second, momentum, kinetic)
        for column, rows in zip(columns, (*turned, *others), strict=True):
            foreach._foreach_copy_(column, list(rows))
        self._keep("basis", new)
        return gram

    def _together(self, key: str) -> Tensor:
        """What is remembered under a key, `(1, K)` for each tensor, as `(T, K)`; of one alone it is no copy."""
        rows = [memory[key] for memory in self._memories]
        return torch.cat(rows) if len(rows) > 1 else rows[0]

    def _keep(self, key: str, rows: Tensor) -> None:
        if rows is not self._memories[0][key]:
            foreach._foreach_copy_([memory[key] for memory in self._memories], list(rows.split(1)))


def turned(bases: Iterable[Eigenbases | None], blocks: Sequence[Block], frequency: int) -> list[Turned]:
    """Turn the blocks that have bases, equal ones together."""
    groups = dict[tuple[Any, ...], list[int]]()
    for place, (of_block, block) in enumerate(zip(bases, blocks, strict=True)):
        if of_block is not None:
            kind = of_block, block.home.device, block.home.dtype, block.memory["step"], block.memory["gram_unit"]
            groups.setdefault(kind, []).append(place)
    found = []
    for (of_group, device, *_), places in groups.items():
        most = max(1, LENGTH // blocks[places[0]].home.numel()) if device.type == "cpu" else len(places)
        for first in range(0, len(places), most):
            part = places[first : first + most]
            found.append(Turned([blocks[k] for k in part], part, of_group, frequency))
    return found


def _largest(rows: Tensor) -> Tensor:
    """Largest absolute value of each row, `(T, 1)`."""
    if rows.device.type == "cpu":  # where that is several times as fast
        return torch.stack([torch.stack(row.aminmax()) for row in rows]).abs().amax(1, keepdim=True)
    return rows.abs().amax(1, keepdim=True)


def _squares(tensors: list[Tensor]) -> Tensor:
    """The sum of squares of each, `(T,)`."""
    if tensors[0].device.type == "cpu":
        return torch.stack([x.dot(x) for x in tensors])
    return torch.stack(foreach._foreach_norm(tensors)).square()  # in few launches
