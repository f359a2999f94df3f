"""Deep linear networks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ph_l2o.checks import at_least, number
from ph_l2o.keys import ProblemKeys, Purpose
from ph_l2o.params import Params
from ph_l2o.tasks.task import Buffers, StochasticProblem, Task, stacked


class DeepLinearProblem(StochasticProblem):
    """B deep linear networks."""

    def __init__(self, task: DeepLinear, keys: ProblemKeys, *, device: torch.device | str, dtype: torch.dtype):
        self.keys, self._task = keys, task
        self._targets, starts = stacked(keys, task.matrices, device=device, dtype=dtype)
        self.params = Params.from_tensors({f"weight{k}": starts[:, k] for k in range(task.depth)})

    def draw(self, purpose: Purpose, first: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        size, dim = self._task.batch_size, self._task.dim
        for step in range(first, first + count):
            numbers = torch.from_numpy(self.keys.normals(purpose, step, 2 * size * dim)).to(self._targets)
            inputs, noise = numbers.view(-1, 2, size, dim).unbind(1)
            yield inputs, inputs @ self._targets + self._task.noise * noise

    def loss(self, params: Params, buffers: Buffers, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Buffers]:
        hidden, outputs = batch
        for k in range(self._task.depth):
            hidden = hidden @ params[f"weight{k}"]
        return (hidden - outputs).square().mean((1, 2)), buffers


class DeepLinear(Task):
    """Mean squared error of W_L ⋯ W_1 x to A x + noise; the product of the weights makes it far from convex.

    A has singular values from 1 down to 0.1. Inputs and noise are drawn anew in each step.

    Args:
        dim: Inputs, units of each layer, and outputs, >= 1.
        depth: Number of layers L, >= 1.
        batch_size: Inputs of a mini-batch, >= 1.
        noise: Standard deviation of the noise, >= 0.
        name: Name in tables.

    Raises:
        ValueError: If an argument is out of range.

    Reference: Saxe, McClelland and Ganguli 2014.
    """

    problem_type = DeepLinearProblem

    def __init__(
        self, dim: int = 16, *, depth: int = 6, batch_size: int = 32, noise: float = 0.05, name: str = "deep_linear"
    ):
        self.dim, self.depth = at_least("task.dim", dim, 1, "units"), at_least("task.depth", depth, 1, "layers")
        self.batch_size = at_least("task.batch_size", batch_size, 1, "inputs of a mini-batch")
        self.noise, self.name = number("task.noise", noise, minimum=0, meaning="standard deviation"), name

    def matrices(self, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A of one problem, `(dim, dim)`, and the initial weights `(depth, dim, dim)`."""
        normal = generator.standard_normal
        left, right = (np.linalg.qr(normal((self.dim, self.dim)))[0] for _ in range(2))
        target = left * np.logspace(0, -1, self.dim) @ right
        return target, normal((self.depth, self.dim, self.dim)) / self.dim**0.5
