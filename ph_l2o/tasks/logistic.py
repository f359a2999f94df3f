"""Random classification by a linear model: convex, of random conditioning."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ph_l2o.keys import ProblemKeys, Purpose, integers
from ph_l2o.params import Params
from ph_l2o.tasks.task import Buffers, Problem, Task

Batch = tuple[Tensor, Tensor]  # features (B, batch, features), labels (B, batch)


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
        counts = {"features": (features, 1), "classes": (classes, 2), "examples": (examples, 1)}
        for key, (value, least) in counts.items():
            if not isinstance(value, int) or value < least:
                raise ValueError(f"task.{key}={value}: must be a whole number >= {least}")
        if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
            raise ValueError(f"task.batch_size={batch_size}: must be a whole number >= 1 (points), or null for all")
        if not 1 <= condition_number < math.inf:
            raise ValueError(f"task.condition_number={condition_number}: must be >= 1 and finite")
        if not 0 <= sharpness < math.inf:
            raise ValueError(f"task.sharpness={sharpness}: must be >= 0 and finite")
        self.features, self.classes, self.examples, self.batch_size = features, classes, examples, batch_size
        self.condition_number, self.sharpness, self.name = condition_number, sharpness, name

    def sample(
        self, keys: ProblemKeys, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> LogisticProblem:
        """Draw points and starts; see `Task.sample`."""
        draws = [self._draw(keys.generator(Purpose.PROBLEM, i)) for i in keys.indices]
        x, labels, start = (torch.from_numpy(np.stack(d)).to(device) for d in zip(*draws, strict=True))
        return LogisticProblem(keys, x.to(dtype), labels, start.to(dtype), self.batch_size)

    def _draw(self, generator: np.random.Generator) -> tuple[np.ndarray, ...]:
        """Features `(examples, features)`, labels `(examples,)` and initial weights `(features, classes)`."""
        n, c = self.features, self.classes
        z, hidden = generator.standard_normal((self.examples, n)), generator.standard_normal((n, c))
        logits = self.sharpness * (z @ hidden) / math.sqrt(n)
        labels = (logits + generator.gumbel(size=logits.shape)).argmax(1)
        rotation = np.linalg.qr(generator.standard_normal((n, n)))[0]
        scales = self.condition_number ** (-0.5 * np.linspace(0, 1, n))
        x = z * scales / np.sqrt((scales**2).mean()) @ rotation.T
        return x, labels, generator.standard_normal((n, c)) / math.sqrt(n)


class LogisticProblem(Problem):
    """B problems with features `(B, examples, features)`, labels `(B, examples)`, weights `(B, features, classes)`."""

    def __init__(self, keys: ProblemKeys, features: Tensor, labels: Tensor, start: Tensor, batch_size: int | None):
        self.keys, self.features, self.labels, self.batch_size = keys, features, labels, batch_size
        self.params = Params.from_tensors({"weight": start, "bias": torch.zeros_like(start[:, 0])})
        self.stochastic = batch_size is not None

    def batches(self, first: int, count: int) -> Iterator[Batch]:
        return self._draw(Purpose.BATCH, first, count)

    def final_batches(self, count: int) -> Iterator[Batch]:
        return self._draw(Purpose.FINAL_BATCH, 0, count)

    def _draw(self, purpose: Purpose, first: int, count: int) -> Iterator[Batch]:
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


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over all but the first axis, `(B, …, classes)` and `(B, …)` → `(B,)`; a product is cheaper than a gather."""
    # A comparison, since `one_hot` looks at the values, which no compiled or traced step can.
    chosen = labels[..., None] == torch.arange(logits.shape[-1], device=labels.device)
    return (logits.log_softmax(-1) * chosen).flatten(1).sum(1) / -labels[0].numel()
