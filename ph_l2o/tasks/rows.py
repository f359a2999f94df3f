"""Mini-batches of the rows of arrays: what tasks on images, tables and text share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ph_l2o.keys import ProblemKeys, Purpose, integers
from ph_l2o.params import Params
from ph_l2o.tasks.module import ModuleProblem
from ph_l2o.tasks.task import Buffers, StochasticProblem

# First step numbers, beyond those of all inner steps, of what final batches, held-out ones and samples draw
# besides rows.
_FINAL, _HELD_OUT, _SAMPLED = 2**62, 3 * 2**61, 7 * 2**60


class Batch(NamedTuple):
    """A mini-batch for each problem.

    Attributes:
        rows: The chosen rows of each array, `(B, batch, …)`.
        noise: Standard normal numbers, `(B, batch, width)`; None where the loss needs none.
        seeds: Of what each problem's module draws itself; empty where it draws nothing.
    """

    rows: tuple[Tensor, ...]
    noise: Tensor | None = None
    seeds: tuple[int, ...] = ()


class RowProblem(StochasticProblem, ModuleProblem):
    """B modules that see mini-batches of the same rows, each drawn with replacement by keys of its own.

    A subclass gives the loss of a batch.

    Args:
        keys: Keys of the problems.
        factory: Makes one module.
        arrays: Tensors `(rows, …)` of the split, on the device.
        batch_size: Rows of a mini-batch.
        noise: Standard normal numbers that the loss needs for each row.
        trained: Number of rows to draw from, the first ones; None: all.
        held_out: Rows that give the test loss; none: there is no test loss.
        device: Where the problems are.
        dtype: Floating-point type.
    """

    def __init__(
        self,
        keys: ProblemKeys,
        factory: Callable[[], nn.Module],
        arrays: Sequence[Tensor],
        batch_size: int,
        *,
        noise: int = 0,
        trained: int | None = None,
        held_out: Sequence[int] = (),
        device: torch.device | str,
        dtype: torch.dtype,
    ):
        super().__init__(keys, factory, device=device, dtype=dtype)
        self._arrays, self._batch_size, self._noise = tuple(arrays), batch_size, noise
        self._trained = len(arrays[0]) if trained is None else trained
        self._held_out = torch.tensor(held_out, dtype=torch.int64, device=device)

    def draw(self, purpose: Purpose, first: int, count: int) -> Iterator[Any]:
        words = self.keys.words(purpose, first, count, self._batch_size)
        rows = torch.from_numpy(integers(words, self._trained)).to(self._device)
        for step, chosen in enumerate(rows, start=first + _FINAL * (purpose is Purpose.FINAL_BATCH)):
            yield self.batch(chosen, step)

    def training_sample(self, most: int) -> Iterator[tuple[Any, int]]:
        """Whole mini-batches of the first rows, at least one; where there are too few rows, they are repeated."""
        for k in range(max(1, min(most, self._trained) // self._batch_size)):
            rows = torch.arange(k * self._batch_size, (k + 1) * self._batch_size, device=self._device) % self._trained
            yield self.batch(rows.expand(self.num_problems, -1), _SAMPLED + k), self._batch_size

    def batch(self, rows: Tensor, step: int) -> Any:
        """The mini-batch of the rows `(B, batch)`; its other draws are those of this step number."""
        noise = None
        if self._noise:
            numbers = self.keys.normals(Purpose.NOISE, step, self._batch_size * self._noise)
            noise = torch.from_numpy(numbers).to(self._device, self._dtype).view(len(self.keys), self._batch_size, -1)
        return Batch(tuple(array[rows] for array in self._arrays), noise, self.seeds(step))

    def seeds(self, step: int) -> tuple[int, ...]:
        """Of what each problem's module draws itself in a step; empty where it draws nothing."""
        if not self.draws_randomly:
            return ()
        return tuple(self.keys.torch_seed(Purpose.MODULE, i, 1 + step) for i in self.keys.indices)

    def loss(self, params: Params, buffers: Buffers, batch: Batch) -> tuple[Tensor, Buffers]:
        outputs, buffers = self.outputs(params, buffers, batch.rows[0], seeds=batch.seeds)
        return self.criterion(outputs, batch.rows[1]), buffers

    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses `(B,)` of outputs `(B, batch, …)` and the rows of the second array."""
        raise NotImplementedError

    @torch.no_grad()
    def test_metrics(self, params: Params, buffers: Buffers) -> dict[str, Tensor]:
        """`test_loss`: the mean over whole mini-batches of the rows that are held out, in evaluation mode."""
        evaluating, losses = self.evaluating(), list[Tensor]()
        for k in range(len(self._held_out) // self._batch_size):
            rows = self._held_out[k * self._batch_size : (k + 1) * self._batch_size]
            batch = evaluating.batch(rows.expand(self.num_problems, -1), _HELD_OUT + k)
            losses.append(evaluating.loss(params, buffers, batch)[0])
        return {"test_loss": torch.stack(losses).mean(0)} if losses else {}
