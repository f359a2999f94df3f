"""A search over a grid of hyperparameters, all of whose points run on the same problems in one batch."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ph_l2o.evaluation.estimates import as_losses, mean
from ph_l2o.evaluation.runner import LAST, TAIL, Progress, chunk_size, prepared, run_episode, tiled
from ph_l2o.keys import ProblemKeys
from ph_l2o.tasks.task import Task

_LOG = logging.getLogger(__name__)

Grid = dict[str, tuple[float, ...]]
Point = tuple[float, ...]
Table = dict[Point, float]

RATE = "lr"
_FINE = 10**0.25  # ratio of learning rates after refinement
_MAX_WIDENINGS = 4
_POINTS_PER_WIDENING = 2
_TOLERANCE = 1.01  # learning rates closer than this ratio are one


@dataclass
class GridSearch:
    """A search in progress: what to run, and the criterion of each point so far.

    Attributes:
        name: Of the optimizer, for messages.
        optimizer: What `with_hyperparameters` is called on.
        names: Of the hyperparameters, in the order of a point.
        table: The criterion of each point that was tried, +∞ where it is not finite.

    The others are those of `tune`.
    """

    name: str
    optimizer: Any
    task: Task
    names: tuple[str, ...]
    horizon: int
    num_problems: int
    seed: int
    device: torch.device | str
    dtype: torch.dtype
    chunk: int | None
    progress: Progress | None

    def __post_init__(self) -> None:
        self.table: Table = {}
        self.optimizer = prepared(self.optimizer, self.device, self.dtype)
        self.done = self.planned = 0
        self.size = chunk_size(self.task, self.device) if self.chunk is None else self.chunk

    def search(self, grid: Grid) -> bool:
        """Fill the table; whether the grid had to be widened."""
        self.try_points(itertools.product(*grid.values()))
        if RATE not in grid:
            return False
        widened = False
        for _ in range(_MAX_WIDENINGS):
            rates = self.wider(grid)
            if not rates:
                break
            widened = True
            self.try_points(itertools.product(*(rates if k == RATE else v for k, v in grid.items())))
        else:
            if self.wider(grid):
                text = "%s: the best learning rate on %s is still at an edge of its grid, %.3g"
                _LOG.warning(text, self.name, self.task.name, self.best()[self.axis])
        others = sorted({self.without_rate(point) for point in self.table})
        self.try_points(itertools.chain.from_iterable(self.finer(other) for other in others))
        return widened

    @property
    def axis(self) -> int:
        return self.names.index(RATE)

    def best(self) -> Point:
        return best_point(self.table, self.names)

    def without_rate(self, point: Point) -> Point:
        return point[: self.axis] + point[self.axis + 1 :]

    def wider(self, grid: Grid) -> list[float]:
        """Learning rates beyond the edge at which the best one lies; none if it is interior."""
        rates = sorted({point[self.axis] for point in self.table})
        best, given = self.best()[self.axis], sorted(grid[RATE])
        ratio = (given[-1] / given[0]) ** (1 / (len(given) - 1)) if len(given) > 1 else math.sqrt(10)
        ratio = max(ratio, _FINE)
        powers = range(1, _POINTS_PER_WIDENING + 1)
        below = [_rounded(rates[0] / ratio**k) for k in powers] if best == rates[0] else []
        above = [_rounded(rates[-1] * ratio**k) for k in powers] if best == rates[-1] else []
        return below + above

    def finer(self, other: Point) -> list[Point]:
        """Points in steps of a quarter of a decade between the neighbours of the best learning rate."""
        rates = sorted(point[self.axis] for point in self.table if self.without_rate(point) == other)

        def point(rate: float) -> Point:
            return (*other[: self.axis], rate, *other[self.axis :])

        best = min(range(len(rates)), key=lambda i: self.table[point(rates[i])])
        new: list[float] = []
        for neighbour in (best - 1, best + 1):
            if 0 <= neighbour < len(rates):
                gap = abs(math.log(rates[neighbour] / rates[best]))
                step = math.copysign(math.log(_FINE), neighbour - best)
                count = int((gap - math.log(_TOLERANCE)) / math.log(_FINE))
                new += [_rounded(rates[best] * math.exp(step * k)) for k in range(1, count + 1)]
        return [point(rate) for rate in new]

    def try_points(self, points: Iterable[Point]) -> None:
        """Run all points on all problems, in one batch or in chunks of it."""
        points = [p for p in dict.fromkeys(points) if p not in self.table]
        total = len(points) * self.num_problems
        self.planned += total
        indices = tiled(self.num_problems, len(points))
        values = torch.tensor(points, dtype=self.dtype, device=self.device).repeat_interleave(self.num_problems, 0)
        scores = np.empty(total)
        for first in range(0, total, self.size):
            part = slice(first, min(first + self.size, total))
            scores[part] = self.run(indices[part], values[part])
            self.done += part.stop - part.start
            if self.progress is not None:
                self.progress(self.done, self.planned)
        for point, score in zip(points, scores.reshape(-1, self.num_problems), strict=True):
            self.table[point] = mean(score)

    def run(self, indices: Sequence[int], values: torch.Tensor) -> np.ndarray:
        """The criterion of each problem of a batch, with its own hyperparameters."""
        keys = ProblemKeys(self.seed, "val", 0, indices)
        problem = self.task.sample(keys, device=self.device, dtype=self.dtype)
        by_name = {k: v.contiguous() for k, v in zip(self.names, values.unbind(1), strict=True)}
        _, losses, _ = run_episode(self.optimizer.with_hyperparameters(**by_name), problem, self.horizon)
        last = losses[1:][-max(LAST, round(TAIL * self.horizon)) :] if problem.stochastic else losses[-1:]
        return as_losses(last.cpu().double().mean(0).numpy())


def best_point(table: Mapping[Point, float], names: tuple[str, ...]) -> Point:
    """The first of the best points; where all diverge, the one with the lowest learning rate."""
    best = min(table, key=table.__getitem__)
    if math.isinf(table[best]) and RATE in names:
        return min(table, key=lambda point: point[names.index(RATE)])
    return best


def _rounded(rate: float) -> float:
    return float(f"{rate:.6g}")
