"""The three passes over all coordinates of a step, in place, by plain operations.

Passes take and return numbers for each tensor, float64; what they mean is in `ph_l2o/port_hamiltonian/in_place.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from ph_l2o.port_hamiltonian.blocks import Array, Block, foreach

_LENGTH = 2**17  # coordinates of a batch on a CPU, so that what one operation leaves is in the cache for the next


class Plain:
    """The passes by operations of torch, on any device, with one transient buffer as large as the parameters.

    Args:
        blocks: The tensors of the step.
    """

    def __init__(self, blocks: Sequence[Block]):
        self.count = len(blocks)
        self.batches = list[_Batch]()
        for k, block in enumerate(blocks):
            length = _LENGTH if block.theta.device.type == "cpu" else block.theta.numel()
            for part in _parts(block, length):
                if not self.batches or not self.batches[-1].takes(part[0], length):
                    self.batches.append(_Batch(part[0]))
                self.batches[-1].add(k, part)
        kinds = {batch.kind for batch in self.batches}
        self.mixed = len(kinds) > 1
        for kind in kinds:
            _allocate([batch for batch in self.batches if batch.kind == kind])

    def largest(self) -> float:
        """Largest absolute value of the gradient; NaN if any is."""
        extremes = [x for batch in self.batches for grad in batch.grad for x in grad.aminmax()]
        if self.mixed:
            extremes = [x.to("cpu", torch.float64) for x in extremes]
        return torch.stack(extremes).abs().amax().item()

    def absorb(self, factor: float, weights: Array) -> Array:
        """Take in factor · grad: g.

        Args:
            factor: From the gradient to what is remembered of it; at 1 an operation is saved.
            weights: Of g in both averages and of g² in v, `(T, 3)`.

        Returns:
            Sums `(T, 7)`: squares of g, of both averages and of θ; products of g with both averages and π.
        """
        of_fast, of_slow, of_second = weights.T.tolist()
        dot, found = torch.dot, list[Tensor]()
        for batch in self.batches:
            grads = batch.grad if factor == 1 else batch.scaled(factor)
            second = batch.of(of_second)
            foreach._foreach_lerp_(batch.fast, grads, batch.of(of_fast))
            foreach._foreach_lerp_(batch.slow, grads, batch.of(of_slow))
            foreach._foreach_mul_(batch.second, [1 - w for w in second])
            foreach._foreach_addcmul_(batch.second, grads, grads, second)
            columns = (grads, batch.fast, batch.slow, batch.momentum, batch.home)
            for g, fast, slow, pi, theta in zip(*columns, strict=True):
                found += [
                    dot(g, g), dot(fast, fast), dot(slow, slow), dot(theta, theta),
                    dot(g, fast), dot(g, slow), dot(g, pi),
                ]  # fmt: skip
        return self._sums(found, 7, self.batches)

    def predict(self, factor: float, numbers: Array, pulls: bool) -> Array:
        """Find the scale q = (v + floor)^(-1/4), and ĝ between g and its average.

        Args:
            factor: As for `absorb`.
            numbers: floor, and the average's share in ĝ, `(T, 2)`.
            pulls: Whether the spring acts.

        Returns:
            Sums `(T, 3)` of (q ĝ)², q ĝ π and, where the spring acts, q ĝ q θ, else 0.
        """
        floor, mix = numbers.T.tolist()
        dot, found = torch.dot, list[Tensor]()
        for batch in reversed(self.batches):  # what the last pass ended with is still in the cache
            if len(batch.scales) == 1:
                torch.add(batch.second[0], floor[batch.owners[0]], out=batch.scale)
            else:
                foreach._foreach_copy_(batch.scales, batch.second)
                foreach._foreach_add_(batch.scales, batch.of(floor))
            batch.scale.rsqrt_().sqrt_()
            pushes, nothing = batch.pushes(factor, mix), batch.scale.new_zeros(())
            batch.scratch.mul_(batch.scale)
            for push, pi, scale, theta in zip(pushes, batch.momentum, batch.scales, batch.theta, strict=True):
                found += [dot(push, push), dot(push, pi), dot(push.mul_(scale), theta) if pulls else nothing]
        return self._sums(found, 3, reversed(self.batches))

    def move(self, factor: float, predicted: Array, numbers: Array, pulls: bool) -> Array:
        """π ← keep π - q (force ĝ + spring θ), θ ← θ + rate q π.

        The θ of turned tensors begins at 0 where the spring does not act.

        Args:
            factor: As for `absorb`.
            predicted: `numbers` of `predict`.
            numbers: keep, force, spring and rate, `(T, 4)`.
            pulls: Whether the spring acts.

        Returns:
            Sums `(T, 2)` of π² and θ² afterwards.
        """
        mix = predicted[:, 1].tolist()
        keep, force, spring, rate = (numbers * (1, -1, -1, 1)).T.tolist()
        dot, found = torch.dot, list[Tensor]()
        for batch in self.batches:
            pushes = batch.pushes(factor, mix)
            foreach._foreach_mul_(batch.momentum, batch.of(keep))
            foreach._foreach_addcmul_(batch.momentum, batch.scales, pushes, batch.of(force))
            if pulls and any(pull := batch.of(spring)):  # θ need not be finite elsewhere
                foreach._foreach_addcmul_(batch.momentum, batch.scales, batch.theta, pull)
            for theta, home in zip(batch.theta, batch.home, strict=True):
                if not pulls and theta.data_ptr() != home.data_ptr():
                    theta.zero_()
            foreach._foreach_addcmul_(batch.theta, batch.scales, batch.momentum, batch.of(rate))
            for pi, theta in zip(batch.momentum, batch.theta, strict=True):
                found += [dot(pi, pi), dot(theta, theta)]
        return self._sums(found, 2, self.batches)

    def _sums(self, found: list[Tensor], columns: int, batches: Iterable[_Batch]) -> Array:
        """Sums over parts, in the order of the batches, to sums over tensors."""
        if self.mixed:
            found = [x.to("cpu", torch.float64) for x in found]
        sums = torch.stack(found).to("cpu", torch.float64).view(-1, columns).numpy()
        return over_tensors(sums, [k for batch in batches for k in batch.owners], self.count)


class _Batch:
    """Flat parts of tensors of one device and type, few enough for the cache."""

    def __init__(self, like: Tensor):
        self.kind, self.length = (like.device, like.dtype), 0
        self.owners, self.parts = list[int](), list[tuple[Tensor, ...]]()

    def takes(self, x: Tensor, length: int) -> bool:
        return self.length + x.numel() <= length and (x.device, x.dtype) == self.kind

    def add(self, owner: int, part: tuple[Tensor, ...]) -> None:
        self.owners.append(owner)
        self.parts.append(part)
        self.length += part[0].numel()

    def use(self, scratch: Tensor, scale: Tensor) -> None:
        """Take a scratch that batches share, and a buffer that `predict` leaves to `move`."""
        columns = map(list, zip(*self.parts, strict=True))
        self.grad, self.theta, self.home, self.fast, self.slow, self.second, self.momentum = columns
        sizes = [x.numel() for x in self.theta]
        self.scratch, self.scale = scratch, scale
        self.views, self.scales = list(scratch.split(sizes)), list(scale.split(sizes))

    def of(self, column: list[float]) -> list[float]:
        """A number of each tensor, for each part."""
        return [column[k] for k in self.owners]

    def scaled(self, factor: float) -> list[Tensor]:
        """The gradient times `factor`, in the scratch."""
        if len(self.views) == 1:
            torch.mul(self.grad[0], factor, out=self.scratch)
        else:
            foreach._foreach_copy_(self.views, self.grad)
            if factor != 1:
                self.scratch.mul_(factor)
        return self.views

    def pushes(self, factor: float, mix: list[float]) -> list[Tensor]:
        """ĝ, in the scratch."""
        if factor == 1 and len(self.views) == 1:
            torch.lerp(self.grad[0], self.fast[0], mix[self.owners[0]], out=self.scratch)
        else:
            foreach._foreach_lerp_(self.scaled(factor), self.fast, self.of(mix))
        return self.views


def _allocate(batches: list[_Batch]) -> None:
    """One allocation for all: of many, a CPU's allocator returns memory only to fault it in again."""
    lengths, (device, dtype) = [batch.length for batch in batches], batches[0].kind
    buffer = torch.empty(max(lengths) + sum(lengths), device=device, dtype=dtype)
    scratch, *scales = buffer.split([max(lengths), *lengths])
    for batch, scale in zip(batches, scales, strict=True):
        batch.use(scratch[: batch.length], scale)


def over_tensors(sums: Array, owners: list[int], count: int) -> Array:
    """Add the sums of parts, `(P, k)`, to those of tensors, `(T, k)`; `owners` are the tensors of the parts."""
    if owners == list(range(count)):
        return sums
    found = np.zeros((count, sums.shape[1]))
    np.add.at(found, owners, sums)
    return found


def _parts(block: Block, length: int) -> list[tuple[Tensor, ...]]:
    """Gradient, θ and what is remembered, in parts of at most `length` coordinates."""
    columns = (block.grad, block.theta, block.home, *block.flats)
    if block.theta.numel() <= length:
        return [columns]
    return list(zip(*(x.split(length) for x in columns), strict=True))
