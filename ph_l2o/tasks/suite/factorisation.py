"""Completion of matrices of low rank."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ph_l2o.checks import at_least, number
from ph_l2o.keys import ProblemKeys, Purpose, integers
from ph_l2o.params import Params
from ph_l2o.tasks.task import Buffers, StochasticProblem, Task, stacked


class Entries(NamedTuple):
    """Observed entries of each problem's matrix, each `(B, batch)`: row, column, value."""

    rows: Tensor
    columns: Tensor
    values: Tensor


class FactorisationProblem(StochasticProblem):
    """B matrices."""

    def __init__(self, task: MatrixFactorisation, keys: ProblemKeys, *, device: torch.device | str, dtype: torch.dtype):
        self.keys, self._batch_size, self._device = keys, task.batch_size, torch.device(device)
        rows, columns, values, u, v = stacked(keys, task.entries, device=device, dtype=dtype)
        shown = task.observed
        self._observed = Entries(rows[:, :shown], columns[:, :shown], values[:, :shown])
        self._held_out = Entries(rows[:, shown:], columns[:, shown:], values[:, shown:])
        self.params = Params.from_tensors({"u": u, "v": v})

    def draw(self, purpose: Purpose, first: int, count: int) -> Iterator[Entries]:
        words = self.keys.words(purpose, first, count, self._batch_size)
        for chosen in torch.from_numpy(integers(words, self._observed.rows.shape[1])).to(self._device):
            yield Entries(*(part.gather(1, chosen) for part in self._observed))

    def loss(self, params: Params, buffers: Buffers, batch: Entries) -> tuple[Tensor, Buffers]:
        problem = torch.arange(len(self.keys), device=self._device)[:, None]
        products = params["u"][problem, batch.rows] * params["v"][problem, batch.columns]
        return (products.sum(-1) - batch.values).square().mean(1), buffers

    @torch.no_grad()
    def test_metrics(self, params: Params, buffers: Buffers) -> dict[str, Tensor]:
        """`test_loss` on the entries that are held out."""
        return {"test_loss": self.loss(params, buffers, self._held_out)[0]} if self._held_out.values.numel() else {}


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
        held_out: Number of further entries that are not trained on, and give `test_loss`, >= 0.
        name: Name in tables.

    Raises:
        ValueError: If an argument is out of range.

    Reference: Koren, Bell and Volinsky 2009.
    """

    problem_type = FactorisationProblem

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
        held_out: int = 0,
        name: str = "factorisation",
    ):
        self.num_rows = at_least("task.rows", rows, 1, "of the matrix")
        self.columns = at_least("task.columns", columns, 1, "of the matrix")
        self.true_rank = at_least("task.true_rank", true_rank, 1, "without the noise")
        self.rank = at_least("task.rank", rank, 1, "numbers of a factor")
        self.observed = at_least("task.observed", observed, 1, "entries")
        self.batch_size = at_least("task.batch_size", batch_size, 1, "entries of a mini-batch")
        self.held_out = at_least("task.held_out", held_out, 0, "entries that are not trained on")
        self.noise, self.name = number("task.noise", noise, minimum=0, meaning="standard deviation"), name

    def entries(self, generator: np.random.Generator) -> tuple[np.ndarray, ...]:
        """Observed rows, columns and values of one problem, then those held out; and its initial u and v."""
        count = self.observed + self.held_out
        normal = generator.standard_normal
        matrix = normal((self.num_rows, self.true_rank)) @ normal((self.true_rank, self.columns)) / self.true_rank**0.5
        rows = generator.integers(0, self.num_rows, count)
        columns = generator.integers(0, self.columns, count)
        values = matrix[rows, columns] + self.noise * normal(count)
        return rows, columns, values, 0.3 * normal((self.num_rows, self.rank)), 0.3 * normal((self.columns, self.rank))
