"""Mini-batches of the rows of arrays: what most tasks of the suite share."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ph_l2o.checks import did_you_mean
from ph_l2o.keys import ProblemKeys, Purpose, integers
from ph_l2o.params import Params
from ph_l2o.tasks.module import ModuleProblem
from ph_l2o.tasks.task import FINAL, Buffers


class Batch(NamedTuple):
    """A mini-batch for each problem.

    Attributes:
        rows: The chosen rows of each array, `(B, batch, …)`.
        noise: Standard normal numbers, `(B, batch, width)`; None where the loss needs none.
    """

    rows: tuple[Tensor, ...]
    noise: Tensor | None


class RowProblem(ModuleProblem):
    """B modules that see mini-batches of the same rows, each drawn with replacement by keys of its own.

    A subclass gives the loss of a batch.

    Args:
        keys: Keys of the problems.
        factory: Makes one module.
        arrays: Tensors `(rows, …)` of the split, on the device.
        batch_size: Rows of a mini-batch.
        noise: Standard normal numbers that the loss needs for each row.
        device: Where the problems are.
        dtype: Floating-point type.
    """

    stochastic = True

    def __init__(
        self,
        keys: ProblemKeys,
        factory: Callable[[], nn.Module],
        arrays: Sequence[Tensor],
        batch_size: int,
        *,
        noise: int = 0,
        device: torch.device | str,
        dtype: torch.dtype,
    ):
        super().__init__(keys, factory, device=device, dtype=dtype)
        self._arrays, self._batch_size, self._noise, self._dtype = tuple(arrays), batch_size, noise, dtype

    def batches(self, first: int, count: int) -> Iterator[Batch]:
        return self._draw(Purpose.BATCH, first, count)

    def final_batches(self, count: int) -> Iterator[Batch]:
        return self._draw(Purpose.FINAL_BATCH, 0, count)

    def _draw(self, purpose: Purpose, first: int, count: int) -> Iterator[Batch]:
        words = self.keys.words(purpose, first, count, self._batch_size)
        rows = torch.from_numpy(integers(words, len(self._arrays[0]))).to(self._device)
        for step, chosen in enumerate(rows, start=first + FINAL * (purpose is Purpose.FINAL_BATCH)):
            yield Batch(tuple(self.pick(array, chosen) for array in self._arrays), self._normals(step))

    def pick(self, array: Tensor, rows: Tensor) -> Tensor:
        """The rows `(B, batch)` of an array."""
        return array[rows]

    def _normals(self, step: int) -> Tensor | None:
        if not self._noise:
            return None
        numbers = self.keys.normals(Purpose.NOISE, step, self._batch_size * self._noise)
        return torch.from_numpy(numbers).to(self._device, self._dtype).view(len(self.keys), self._batch_size, -1)

    def loss(self, params: Params, buffers: Buffers, batch: Batch) -> tuple[Tensor, Buffers]:
        outputs, buffers = self.outputs(params, buffers, batch.rows[0])
        return self.criterion(outputs, batch), buffers

    def criterion(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Losses `(B,)` of outputs `(B, batch, …)`."""
        raise NotImplementedError


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean over all but the first axis, `(B, …, classes)` and `(B, …)` → `(B,)`.

    With smoothing s, the target is 1 - s for the label, and s / classes more for every class (Szegedy et al. 2016).
    """
    logs = logits.log_softmax(-1)
    chosen = (logs * (labels[..., None] == torch.arange(logits.shape[-1], device=labels.device))).sum(-1)
    return -((1 - smoothing) * chosen + smoothing * logs.mean(-1)).flatten(1).mean(1)


def bundled(module: str, key: str) -> ModuleType:
    """A module of scikit-learn, whose package has the data.

    Raises:
        ValueError: If it is not installed, with the command that does.
    """
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError:
        raise ValueError(f"{key}: its data come with scikit-learn; `pip install scikit-learn`, or '.[suite]'") from None


def at_least(key: str, value: Any, minimum: int, meaning: str) -> int:
    """A whole number of at least `minimum`.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"task.{key}={value}: must be a whole number >= {minimum} ({meaning})")
    return value


def one_of(key: str, value: Any, allowed: Sequence[str]) -> str:
    """One of the allowed names.

    Raises:
        ValueError: If it is not.
    """
    if value not in allowed:
        raise ValueError(f"task.{key}={value}: must be one of {', '.join(allowed)}{did_you_mean(str(value), allowed)}")
    return value
