"""The three passes over all coordinates of a step, in place, by plain operations.

Passes take and return numbers for each tensor, float64 on the CPU; what they mean is in `ph_l2o/optim/in_place.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

AVERAGES = ("fast", "slow", "second", "momentum")
_LENGTH = 2**17  # coordinates of a batch on a CPU, so that what one operation leaves is in the cache for the next


@dataclass(slots=True)
class Slot:
    """One tensor in a step.

    Attributes:
        name: For the diagnostics.
        shape: Shape of the parameter.
        theta: Parameters, flat.
        grad: Gradient, flat, of the same type; None if the tensor takes no part.
        memory: `fast` and `slow`, averages of the gradient in its unit, `second`, v, and `momentum`, π, of the
            parameter's shape; `step`, the number of steps in it. None for a tensor that never took part.
        lr: Factor of the squared step scale.
        weight_decay: Stiffness of its spring beside the common one.
    """

    name: str
    shape: tuple[int, ...]
    theta: Tensor
    grad: Tensor | None
    memory: dict[str, Any] | None
    lr: float
    weight_decay: float


class _Part(NamedTuple):
    grad: Tensor
    theta: Tensor
    fast: Tensor
    slow: Tensor
    second: Tensor
    momentum: Tensor


class _Batch:
    """Parts of tensors, and what `predict` leaves to `move`."""

    def __init__(self, parts: list[_Part], owners: list[int]):
        self.owners = owners
        self.grad, self.theta, self.fast, self.slow, self.second, self.momentum = map(list, zip(*parts, strict=True))
        self.scale: list[Tensor] = []

    def scaled(self, factor: float) -> list[Tensor]:
        """factor · grad."""
        return torch._foreach_mul(self.grad, factor)  # type: ignore[return-value]

    def of(self, column: list[float]) -> list[float]:
        """A number of each tensor, for each part."""
        return [column[k] for k in self.owners]


class Plain:
    """The passes by operations of torch, on any device, with one transient buffer as large as the parameters.

    Args:
        slots: The tensors of the step, each with a gradient.
    """

    def __init__(self, slots: Sequence[Slot]):
        self.count = len(slots)
        self.batches = list[_Batch]()
        parts, owners, filled, kind = list[_Part](), list[int](), 0, None
        for k, slot in enumerate(slots):
            length = _LENGTH if slot.theta.device.type == "cpu" else slot.theta.numel()
            for part in _parts(slot, length):
                size, now = part.theta.numel(), (slot.theta.device, slot.theta.dtype)
                if parts and (now != kind or filled + size > length):
                    self.batches.append(_Batch(parts, owners))
                    parts, owners, filled = [], [], 0
                parts.append(part)
                owners.append(k)
                filled, kind = filled + size, now
        self.batches.append(_Batch(parts, owners))

    def absorb(self, factor: float, weights: Tensor) -> Tensor:
        """Take in factor · grad: g.

        Args:
            factor: From the gradient to the gradient in its unit.
            weights: Of g in both averages and of g² in v, `(T, 3)`.

        Returns:
            Sums `(T, 9)`: squares of g, of both averages, π and θ; v; products of g with both averages and π.
        """
        of_fast, of_slow, of_second = weights.T.tolist()
        dot, found = torch.dot, list[Tensor]()
        for batch in self.batches:
            grads, second = batch.scaled(factor), batch.of(of_second)
            torch._foreach_lerp_(batch.fast, grads, batch.of(of_fast))
            torch._foreach_lerp_(batch.slow, grads, batch.of(of_slow))
            torch._foreach_mul_(batch.second, [1 - w for w in second])
            torch._foreach_addcmul_(batch.second, grads, grads, second)
            columns = (grads, batch.fast, batch.slow, batch.momentum, batch.theta, batch.second)
            for g, fast, slow, pi, theta, v in zip(*columns, strict=True):
                found += [dot(x, x) for x in (g, fast, slow, pi, theta)]
                found += [v.sum(), dot(g, fast), dot(g, slow), dot(g, pi)]
        return self._sums(found, 9)

    def predict(self, factor: float, numbers: Tensor) -> Tensor:
        """Find the scale q = (v + floor)^(-1/4), and ĝ between g and its average.

        Args:
            factor: As for `absorb`.
            numbers: floor, and the average's share in ĝ, `(T, 2)`.

        Returns:
            Sums `(T, 3)` of (q ĝ)², q ĝ π and q ĝ q θ.
        """
        floor, mix = numbers.T.tolist()
        dot, found = torch.dot, list[Tensor]()
        for batch in self.batches:
            batch.scale = torch._foreach_add(batch.second, batch.of(floor))  # type: ignore[assignment]
            torch._foreach_rsqrt_(batch.scale)
            torch._foreach_sqrt_(batch.scale)
            pushes, pulls = batch.scaled(factor), torch._foreach_mul(batch.theta, batch.scale)
            torch._foreach_lerp_(pushes, batch.fast, batch.of(mix))
            torch._foreach_mul_(pushes, batch.scale)
            for push, pi, pull in zip(pushes, batch.momentum, pulls, strict=True):
                found += [dot(push, push), dot(push, pi), dot(push, pull)]
        return self._sums(found, 3)

    def move(self, factor: float, predicted: Tensor, numbers: Tensor) -> Tensor:
        """π ← keep π - q (force ĝ + spring θ), θ ← θ + rate q π.

        Args:
            factor: As for `absorb`.
            predicted: `numbers` of `predict`.
            numbers: keep, force, spring and rate, `(T, 4)`.

        Returns:
            Sums `(T, 2)` of π² and θ² afterwards.
        """
        mix = predicted[:, 1].tolist()
        keep, force, spring, rate = (numbers * numbers.new_tensor([1, -1, -1, 1])).T.tolist()
        dot, found = torch.dot, list[Tensor]()
        for batch in self.batches:
            pushes = batch.scaled(factor)
            torch._foreach_lerp_(pushes, batch.fast, batch.of(mix))
            torch._foreach_mul_(batch.momentum, batch.of(keep))
            torch._foreach_addcmul_(batch.momentum, batch.scale, pushes, batch.of(force))
            torch._foreach_addcmul_(batch.momentum, batch.scale, batch.theta, batch.of(spring))
            torch._foreach_addcmul_(batch.theta, batch.scale, batch.momentum, batch.of(rate))
            batch.scale = []
            for pi, theta in zip(batch.momentum, batch.theta, strict=True):
                found += [dot(pi, pi), dot(theta, theta)]
        return self._sums(found, 2)

    def _sums(self, found: list[Tensor], columns: int) -> Tensor:
        """Sums over parts, to sums over tensors."""
        if len({(batch.theta[0].device, batch.theta[0].dtype) for batch in self.batches}) > 1:
            found = [x.to("cpu", torch.float64) for x in found]
        sums = torch.stack(found).to("cpu", torch.float64).view(-1, columns)
        return over_tensors(sums, [k for batch in self.batches for k in batch.owners], self.count)


def over_tensors(sums: Tensor, owners: list[int], count: int) -> Tensor:
    """Add the sums of parts, `(P, k)`, to those of tensors, `(T, k)`; `owners` are the tensors of the parts."""
    if len(sums) == count:
        return sums
    return sums.new_zeros(count, sums.shape[1]).index_add_(0, torch.tensor(owners), sums)


def _parts(slot: Slot, length: int) -> list[_Part]:
    assert slot.memory is not None and slot.grad is not None
    columns = [slot.grad, slot.theta, *(slot.memory[name].view(-1) for name in AVERAGES)]
    if slot.theta.numel() <= length:
        return [_Part(*columns)]
    return [_Part(*row) for row in zip(*(x.split(length) for x in columns), strict=True)]
