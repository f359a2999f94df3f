"""Random classification by a linear model: convex, of random conditioning."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ph_l2o.checks import at_least, number
from ph_l2o.keys import ProblemKeys, Purpose, integers
from ph_l2o.params import Params
from ph_l2o.tasks.losses import negative_log_likelihood
from ph_l2o.tasks.task import Buffers, StochasticProblem, Task, stacked

Batch = tuple[Tensor, Tensor]  # features (B, batch, features), labels (B, batch)


class LogisticProblem(StochasticProblem):
    """B problems with features `(B, examples, features)`, labels `(B, examples)`, weights `(B, features, classes)`."""

    def __init__(self, task: LogisticRegression, keys: ProblemKeys, *, device: torch.device | str, dtype: torch.dtype):
        self.features, self.labels, start = stacked(keys, task.points, device=device, dtype=dtype)
        self.params = Params.from_tensors({"weight": start, "bias": torch.zeros_like(start[:, 0])})
        self.keys, self.batch_size, self.stochastic = keys, task.batch_size, task.batch_size is not None

    def draw(self, purpose: Purpose, first: int, count: int) -> Iterator[Batch]:
        if self.batch_size is None:
            return iter([(self.features, self.labels)] * count)
        words = self.keys.words(purpose, first, count, self.batch_size)
        rows = torch.from_numpy(integers(words, self.labels.shape[1])).to(self.labels.device)
        problem = torch.arange(self.num_problems, device=rows.device)[:, None]
        return ((self.features[problem, chosen], self.labels[problem, chosen]) for chosen in rows)

    def loss(self, params: Params, buffers: Buffers, batch: Batch) -> tuple[Tensor, Buffers]:
        tensors, (features, labels) = params.tensors(), batch
        logits = torch.baddbmm(tensors["bias"][:, None], features, tensors["weight"])
        return negative_log_likelihood(logits, labels), buffers


class LogisticRegression(Task):
    """Softmax regression on random points, whose classes a hidden linear model draws.

    Features are x = R D z, z ~ N(0, I), with a random rotation R and a geometric sequence D of mean square 1. Classes
    are drawn from softmax(sharpness · Uᵀz / √features), U with entries N(0, 1).

    Args:
        features: Number of features, >= 1.
        classes: Number of classes, >= 2.
        examples: Points of a problem, >= 1.
        batch_size: Points of a mini-batch, drawn with replacement, >= 1; None takes all points in every step.
        condition_number: Of the covariance of the features, >= 1.
        sharpness: >= 0; the larger, the nearer to separable.
        name: Name in tables and folders.

    Raises:
        ValueError: If an argument is out of range.
    """

    problem_type = LogisticProblem

    def __init__(
        self,
        features: int = 20,
        classes: int = 2,
        *,
        examples: int = 256,
        batch_size: int | None = 32,
        condition_number: float = 10.0,
        sharpness: float = 5.0,
        name: str = "logistic",
    ):
        self.features = at_least("task.features", features, 1, "of a point")
        self.classes = at_least("task.classes", classes, 2, "of the points")
        self.examples = at_least("task.examples", examples, 1, "points of a problem")
        if batch_size is not None:
            at_least("task.batch_size", batch_size, 1, "points of a mini-batch; null takes all")
        self.condition_number = number("task.condition_number", condition_number, minimum=1)
        self.sharpness = number("task.sharpness", sharpness, minimum=0)
        self.batch_size, self.name = batch_size, name

    def points(self, generator: np.random.Generator) -> tuple[np.ndarray, ...]:
        """Features `(examples, features)`, labels `(examples,)` and initial weights `(features, classes)`."""
        n, c = self.features, self.classes
        z, hidden = generator.standard_normal((self.examples, n)), generator.standard_normal((n, c))
        logits = self.sharpness * (z @ hidden) / math.sqrt(n)
        labels = (logits + generator.gumbel(size=logits.shape)).argmax(1)
        rotation = np.linalg.qr(generator.standard_normal((n, n)))[0]
        scales = self.condition_number ** (-0.5 * np.linspace(0, 1, n))
        x = z * scales / np.sqrt((scales**2).mean()) @ rotation.T
        return x, labels, generator.standard_normal((n, c)) / math.sqrt(n)
