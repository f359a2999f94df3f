"""Random least squares, the study's first task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ph_l2o.checks import at_least, number, one_of
from ph_l2o.keys import ProblemKeys, Purpose, normals
from ph_l2o.params import Params
from ph_l2o.tasks.task import Buffers, StochasticProblem, Task


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
        self.dim = at_least("task.dim", dim, 1, "number of coordinates")
        if condition_number is not None:
            number("task.condition_number", condition_number, minimum=1, meaning="null keeps W as drawn")
        self.noise = number("task.noise", noise, minimum=0, meaning="standard deviation")
        self.init = one_of("task.init", init, ("normal", "zeros"))
        self.condition_number, self.name = condition_number, name

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


class QuadraticProblem(StochasticProblem):
    """B problems with `matrix` of shape `(B, n, n)`, `target` and `start` of shape `(B, n)`."""

    purpose = Purpose.NOISE

    def __init__(self, keys: ProblemKeys, matrix: Tensor, target: Tensor, start: Tensor, noise: float = 0.0):
        self.keys, self.matrix, self.noise = keys, matrix, noise
        self.minus_target = -target[..., None]
        self.params = Params.from_tensors({"theta": start})
        self.stochastic = noise > 0

    def draw(self, purpose: Purpose, first: int, count: int) -> Iterator[Any]:
        if not self.stochastic:
            return iter([None] * count)
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
