"""Random re-scaling of the parameters, against learning the scale of one family of problems."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ph_l2o.keys import Purpose
from ph_l2o.params import Params
from ph_l2o.tasks.task import Buffers, Problem


class rescaled(Problem):  # used like a function: rescaled(problem, 0.7)
    """The same problems in other units: θ = scale · θ', one scale for each tensor of each problem.

    Args:
        problem: The problems.
        log_scale: a >= 0; log scale ~ U(-a, a).

    Raises:
        ValueError: If `log_scale` is out of range.

    Reference: Lv, Jiang and Li 2017, "Learning gradient descent: better generalization and longer horizons".
    """

    def __init__(self, problem: Problem, log_scale: float):
        if not 0 <= log_scale < math.inf:
            raise ValueError(f"meta.rescale={log_scale}: must be >= 0 and finite")
        self.problem, self.keys = problem, problem.keys
        self.buffers, self.stochastic = problem.buffers, problem.stochastic
        layout, flat = problem.params.layout, problem.params.flat
        draws = [
            self.keys.generator(Purpose.RESCALE, i).uniform(-log_scale, log_scale, layout.num_tensors)
            for i in self.keys.indices
        ]
        self.scale = layout.expand(torch.from_numpy(np.stack(draws)).to(flat).exp())
        self.params = problem.params.like(flat / self.scale)

    def batches(self, first: int, count: int) -> Iterator[Any]:
        return self.problem.batches(first, count)

    def final_batches(self, count: int) -> Iterator[Any]:
        return self.problem.final_batches(count)

    def training_sample(self, most: int) -> Iterator[tuple[Any, int]]:
        return self.problem.training_sample(most)

    def original(self, params: Params) -> Params:
        """The parameters in the units of the problem."""
        return params.like(params.flat * self.scale)

    def loss(self, params: Params, buffers: Buffers, batch: Any) -> tuple[Tensor, Buffers]:
        return self.problem.loss(self.original(params), buffers, batch)

    def test_metrics(self, params: Params, buffers: Buffers) -> dict[str, Tensor]:
        return self.problem.test_metrics(self.original(params), buffers)
