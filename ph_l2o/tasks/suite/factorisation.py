"""Completion of matrices of low rank."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ph_l2o.keys import ProblemKeys, Purpose, integers
from ph_l2o.params import Params
from ph_l2o.tasks.suite.rows import at_least
from ph_l2o.tasks.task import Buffers, Problem, Task


class Entries(NamedTuple):
    """Observed entries of each problem's matrix, each `(B, batch)`: row, column, value."""

    rows: Tensor
    columns: Tensor
    values: Tensor


class MatrixFactorisation(Task):
    """Mean squared error of u_i · v_j on observed entries of a noisy matrix of low rank, in mini-batches.

    Most gradients are zero in most steps: a mini-batch touches few rows. Every problem has a matrix of its own.

    Args:
        rows: Rows of the matrix, >= 1.
        columns: Columns, >= 1.
        true_rank: Rank without the noise, >= 1.
        rank: Numbers of u_i and v_j, >= 1.
        observed: Number of observed entries, >= 1; the same one can occur twice.
        batch_size: Entries of a mini-batch, >= 1.
        noise: Standard deviation of the noise, where the matrix has 1, >= 0.
        name: Name in tables.

    Raises:
        ValueError: If an argument is out of range.

    Reference: Koren, Bell and Volinsky 2009.
    """

    def __init__(
        self,
        rows: int = 64,
        columns: int = 48,
        *,
        true_rank: int = 4,
        rank: int = 6,
        observed: int = 1024,
        batch_size: int = 64,
        noise: float = 0.3,
        name: str = "factorisation",
    ):
        self.num_rows, self.columns = (
            at_least("rows", rows, 1, "of the matrix"),
            at_least("columns", columns, 1, "of it"),
        )
        self.true_rank, self.rank = at_least("true_rank", true_rank, 1, "numbers"), at_least("rank", rank, 1, "numbers")
        self.observed = at_least("observed", observed, 1, "entries")
        self.batch_size = at_least("batch_size", batch_size, 1, "entries of a mini-batch")
        if noise < 0:
            raise ValueError(f"task.noise={noise}: must be >= 0")
        self.noise, self.name = noise, name

    def sample(
        self, keys: ProblemKeys, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> FactorisationProblem:
        """Draw matrices; see `Task.sample`."""
        return FactorisationProblem(self, keys, device=device, dtype=dtype)


class FactorisationProblem(Problem):
    """B matrices."""

    stochastic = True

    def __init__(self, task: MatrixFactorisation, keys: ProblemKeys, *, device: torch.device | str, dtype: torch.dtype):
        self.keys, self._batch_size, self._device = keys, task.batch_size, torch.device(device)
        rows, columns, values, u, v = zip(
            *(_drawn(task, keys.generator(Purpose.PROBLEM, i)) for i in keys.indices), strict=True
        )

        def stacked(arrays: tuple[np.ndarray, ...]) -> Tensor:
            made = torch.from_numpy(np.stack(arrays)).to(device)
            return made.to(dtype) if made.is_floating_point() else made

        self._observed = Entries(stacked(rows), stacked(columns), stacked(values))
        self.params = Params.from_tensors({"u": stacked(u), "v": stacked(v)})

    def batches(self, first: int, count: int) -> Iterator[Entries]:
        return self._draw(Purpose.BATCH, first, count)

    def final_batches(self, count: int) -> Iterator[Entries]:
        return self._draw(Purpose.FINAL_BATCH, 0, count)

    def _draw(self, purpose: Purpose, first: int, count: int) -> Iterator[Entries]:
        words = self.keys.words(purpose, first, count, self._batch_size)
        for chosen in torch.from_numpy(integers(words, self._observed.rows.shape[1])).to(self._device):
            yield Entries(*(part.gather(1, chosen) for part in self._observed))

    def loss(self, params: Params, buffers: Buffers, batch: Entries) -> tuple[Tensor, Buffers]:
        problem = torch.arange(len(self.keys), device=self._device)[:, None]
        products = params["u"][problem, batch.rows] * params["v"][problem, batch.columns]
        return (products.sum(-1) - batch.values).square().mean(1), buffers


def _drawn(task: MatrixFactorisation, generator: np.random.Generator) -> tuple[np.ndarray, ...]:
    normal = generator.standard_normal
    matrix = normal((task.num_rows, task.true_rank)) @ normal((task.true_rank, task.columns)) / task.true_rank**0.5
    rows = generator.integers(0, task.num_rows, task.observed)
    columns = generator.integers(0, task.columns, task.observed)
    values = matrix[rows, columns] + task.noise * normal(task.observed)
    return rows, columns, values, 0.3 * normal((task.num_rows, task.rank)), 0.3 * normal((task.columns, task.rank))
