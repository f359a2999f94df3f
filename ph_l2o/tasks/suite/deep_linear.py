"""Deep linear networks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ph_l2o.keys import ProblemKeys, Purpose
from ph_l2o.params import Params
from ph_l2o.tasks.suite.rows import at_least
from ph_l2o.tasks.task import Buffers, Problem, Task


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

    def __init__(
        self, dim: int = 16, *, depth: int = 6, batch_size: int = 32, noise: float = 0.05, name: str = "deep_linear"
    ):
        self.dim, self.depth = at_least("dim", dim, 1, "units"), at_least("depth", depth, 1, "layers")
        self.batch_size = at_least("batch_size", batch_size, 1, "inputs of a mini-batch")
        if noise < 0:
            raise ValueError(f"task.noise={noise}: must be >= 0")
        self.noise, self.name = noise, name

    def sample(
        self, keys: ProblemKeys, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> DeepLinearProblem:
        """Draw matrices A and starts; see `Task.sample`."""
        return DeepLinearProblem(self, keys, device=device, dtype=dtype)


class DeepLinearProblem(Problem):
    """B deep linear networks."""

    stochastic = True

    def __init__(self, task: DeepLinear, keys: ProblemKeys, *, device: torch.device | str, dtype: torch.dtype):
        self.keys, self._task = keys, task
        drawn = [_drawn(task, keys.generator(Purpose.PROBLEM, i)) for i in keys.indices]
        targets, starts = (torch.from_numpy(np.stack(part)) for part in zip(*drawn, strict=True))
        self._targets = targets.to(device=device, dtype=dtype)
        starts = starts.to(device=device, dtype=dtype)
        self.params = Params.from_tensors({f"weight{k}": starts[:, k] for k in range(task.depth)})

    def batches(self, first: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        return self._draw(Purpose.BATCH, first, count)

    def final_batches(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        return self._draw(Purpose.FINAL_BATCH, 0, count)

    def _draw(self, purpose: Purpose, first: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
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


def _drawn(task: DeepLinear, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    normal = generator.standard_normal
    left, right = (np.linalg.qr(normal((task.dim, task.dim)))[0] for _ in range(2))
    target = left * np.logspace(0, -1, task.dim) @ right
    return target, normal((task.depth, task.dim, task.dim)) / task.dim**0.5
