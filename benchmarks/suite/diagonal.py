"""A task whose cost is linear in the number of coordinates, for sizes at which a matrix would not fit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ph_l2o.keys import ProblemKeys, Purpose
from ph_l2o.params import Params
from ph_l2o.tasks import Problem, Task
from ph_l2o.tasks.task import Buffers


class Diagonal(Task):
    """f(θ) = mean_i c_i θ_i², c_i from 0.1 to 1, in `num_tensors` tensors of equal size; θ₀ ~ N(0, I).

    Args:
        numel: Coordinates, a multiple of `num_tensors`.
        num_tensors: Tensors, >= 1.
    """

    def __init__(self, numel: int, num_tensors: int = 10):
        self.numel, self.num_tensors, self.name = numel, num_tensors, "diagonal"

    def sample(
        self, keys: ProblemKeys, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> DiagonalProblem:
        """Draw the starts; see `Task.sample`."""
        rows = []
        for i in keys.indices:
            generator = torch.Generator().manual_seed(keys.torch_seed(Purpose.PROBLEM, i))
            rows.append(torch.randn(self.numel, generator=generator))
        parts = torch.stack(rows).to(device=device, dtype=dtype).chunk(self.num_tensors, 1)
        return DiagonalProblem(keys, Params.from_tensors({f"part{k}": part for k, part in enumerate(parts)}))


class DiagonalProblem(Problem):
    """B problems with the same curvatures."""

    def __init__(self, keys: ProblemKeys, start: Params):
        self.keys, self.params = keys, start
        n = start.layout.numel
        self.curvature = torch.linspace(0.1, 1, n).to(start.flat) / n

    def loss(self, params: Params, buffers: Buffers, batch: Any) -> tuple[Tensor, Buffers]:
        del batch
        return (params.flat.square() * self.curvature).sum(1), buffers
