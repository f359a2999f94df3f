"""Random least squares, the study's first task."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ph_l2o.keys import ProblemKeys, Purpose, normals
from ph_l2o.params import Params
from ph_l2o.tasks.task import Buffers, Problem, Task


class Quadratic(Task):
    """f(θ) = ‖Wθ − y‖², W ∈ R^{n×n} and y ∈ R^n with entries N(0, 1).

    Args:
        dim: Number of coordinates n, >= 1.
        condition_number: None keeps W as drawn; a number κ >= 1 replaces W's singular values by a geometric
            sequence with ratio √κ between largest and smallest and the same Frobenius norm in the mean, so that the
            Hessian 2WᵀW has condition number κ.
        noise: Standard deviation, >= 0, of a normal noise that is added to y anew in each step (0: none).
        init: `normal` starts at θ₀ ~ N(0, I), `zeros` at 0 (the published study).
        name: Name in tables and folders.

    Raises:
        ValueError: If an argument is out of range.

    Reference: Andrychowicz et al. 2016, "Learning to learn by gradient descent by gradient descent", section 3.1.
    """

    def __init__(
        self,
        dim: int = 10,
        *,
        condition_number: float | None = None,
        noise: float = 0.0,
        init: Literal["normal", "zeros"] = "normal",
        name: str = "quadratic",
    ):
        if dim < 1:
            raise ValueError(f"task.dim={dim}: must be >= 1 (number of coordinates)")
        if condition_number is not None and not 1 <= condition_number < math.inf:
            raise ValueError(
                f"task.condition_number={condition_number}: must be >= 1 and finite, or null for W as drawn"
            )
        if not 0 <= noise < math.inf:
            raise ValueError(f"task.noise={noise}: must be >= 0 and finite (standard deviation)")
        if init not in ("normal", "zeros"):
            raise ValueError(f"task.init={init}: must be normal or zeros")
        self.dim, self.condition_number, self.noise, self.init, self.name = (
            dim,
            condition_number,
            noise,
            init,
            name,
        )

    def sample(
        self, keys: ProblemKeys, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> QuadraticProblem:
        """Draw W, y and θ₀ of each problem; see `Task.sample`."""
        n = self.dim
        draws = keys.normals(Purpose.PROBLEM, 0, n * n + 2 * n)
        matrix = draws[:, : n * n].reshape(-1, n, n)
        if self.condition_number is not None:
            matrix = _with_condition_number(matrix, self.condition_number)
        start = draws[:, n * n + n :] * (self.init == "normal")

        def to(x: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(x)).to(device=device, dtype=dtype)

        return QuadraticProblem(keys, to(matrix), to(draws[:, n * n : n * n + n]), to(start), self.noise)


class QuadraticProblem(Problem):
    """B problems with `matrix` of shape `(B, n, n)`, `target` and `start` of shape `(B, n)`."""

    def __init__(self, keys: ProblemKeys, matrix: Tensor, target: Tensor, start: Tensor, noise: float = 0.0):
        self.keys, self.matrix, self.noise = keys, matrix, noise
        self.minus_target = -target[..., None]
        self.params = Params.from_tensors({"theta": start})
        self.stochastic = noise > 0

    def batches(self, first: int, count: int) -> Iterator[Any]:
        return self._noise(Purpose.NOISE, first, count) if self.stochastic else super().batches(first, count)

    def final_batches(self, count: int) -> Iterator[Any]:
        return self._noise(Purpose.FINAL_BATCH, 0, count) if self.stochastic else super().batches(0, count)

    def _noise(self, purpose: Purpose, first: int, count: int) -> Iterator[Tensor]:
        n = self.matrix.shape[-1]
        noise = self.noise * normals(self.keys.words(purpose, first, count, n + n % 2))[..., :n, None]
        return iter(torch.from_numpy(noise).to(self.matrix))

    def loss(self, params: Params, buffers: Buffers, batch: Any) -> tuple[Tensor, Buffers]:
        minus_target = self.minus_target if batch is None else self.minus_target + batch
        residual = torch.baddbmm(minus_target, self.matrix, params.flat[..., None])
        return residual.square().sum((1, 2)), buffers


def _with_condition_number(matrix: np.ndarray, condition_number: float) -> np.ndarray:
    n = matrix.shape[-1]
    u, _, vt = np.linalg.svd(matrix)
    values = condition_number ** (-0.5 * np.linspace(0, 1, n))
    return (u * (values * np.sqrt(n * n / (values**2).sum()))) @ vt
