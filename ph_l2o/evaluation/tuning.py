"""Tuning of classical optimizers by grid search on the validation split."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ph_l2o
from ph_l2o.checks import at_least, nearest
from ph_l2o.evaluation.runner import (
    LAST,
    Progress,
    chunk_size,
    num_coordinates,
    prepared,
    run_episode,
    tiled,
)
from ph_l2o.evaluation.statistics import as_losses, mean
from ph_l2o.files import write_atomically
from ph_l2o.keys import ProblemKeys
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.tasks.task import Task

_LOG = logging.getLogger(__name__)

_CLASSES = {
    "sgd": "SGD",
    "momentum": "Momentum",
    "nesterov": "Nesterov",
    "rmsprop": "RMSprop",
    "adam": "Adam",
    "adamw": "AdamW",
    "muon": "Muon",
    "soap": "SOAP",
}
BASELINES: tuple[str, ...] = tuple(_CLASSES)

Grid = dict[str, tuple[float, ...]]
Point = tuple[float, ...]

_RATE = "lr"
_FINE = 10**0.25  # ratio of learning rates after refinement
_MAX_WIDENINGS = 4
_POINTS_PER_WIDENING = 2
_TOLERANCE = 1.01  # learning rates closer than this ratio are one


@dataclass(frozen=True, eq=False)
class Tuned:
    """The outcome of `tune`.

    Attributes:
        optimizer: With the best hyperparameters.
        hyperparameters: Them, by name.
        table: One row for each grid point that was tried: its hyperparameters and `criterion`, +∞ where any
            of its problems diverged to a loss that is not finite.
        grid: The values that were tried, by name, with the points of widening and refinement.
        widened: Whether the grid as given had its best learning rate at an edge.
        num_problems: Number of validation problems.
        cached: Whether the table was read from the cache.
        seconds: Wall-clock time that it took.
    """

    optimizer: Any
    hyperparameters: dict[str, float]
    table: list[dict[str, float]]
    grid: Grid
    widened: bool
    num_problems: int
    cached: bool
    seconds: float


def baseline(name: str) -> Any:
    """The class of a classical optimizer by its name in `BASELINES`.

    Raises:
        ValueError: If there is none of this name.
    """
    if name not in _CLASSES:
        raise ValueError(f"optimizer={name}: no baseline has this name; {nearest(name, BASELINES)}")
    return getattr(importlib.import_module("ph_l2o.optimizers"), _CLASSES[name])


def default_num_problems(task: Task, num_test_problems: int) -> int:
    """Validation problems for tuning: as many as test problems, within limits that keep the cost in hand.

    At least 256, so that the choice is not noise, and at most 1,024; fewer, down to 16, for problems of more
    than 256 coordinates (averages of mini-batch losses vary less between problems, too).
    """
    affordable = min(max(2**18 // num_coordinates(task), 16), 1024)
    return min(max(num_test_problems, 256), affordable)


def tune(
    optimizer: str | type[LearnedOptimizer] | LearnedOptimizer,
    task: Task,
    *,
    horizon: int,
    num_problems: int,
    seed: int,
    grid: Mapping[str, Iterable[float]] | None = None,
    cache_dir: str | Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    chunk: int | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """Find the hyperparameters with the lowest criterion on the problems of the validation split.

    The criterion is the mean over problems of the final loss loss_T; for stochastic tasks, of the mean of the
    last 10 losses. A loss in it that is not finite makes it +∞.

    The search has two stages. The coarse one tries all combinations of the grid; while the best learning rate
    is the lowest or highest, the grid is widened by 2 points on that side (4 times at most). The fine one
    tries, for each combination of the other hyperparameters, learning rates in steps of a quarter of a decade
    around its best. All points see the same problems and mini-batches; they run together, as one batch in
    which each problem occurs once for each grid point, or in chunks of such a batch.

    Args:
        optimizer: A classical optimizer: its name, its class, or an instance that fixes what is not in the
            grid.
        task: The task.
        horizon: Inner steps, >= 1.
        num_problems: Number of validation problems, >= 1.
        seed: Seed of the problems, >= 0.
        grid: Values of each hyperparameter; None: the class's own.
        cache_dir: Folder of results of earlier calls, which are used if all that matters is the same; None:
            no cache.
        device: Where to run.
        dtype: Floating-point type of the parameters.
        chunk: Problems to run at once, >= 1; None: `chunk_size`.
        progress: Called after each chunk with the number of task runs done, and of all known so far.

    Raises:
        ValueError: If an argument is out of range, or a name is unknown.
    """
    begin = time.perf_counter()
    horizon = at_least("horizon", horizon, 1, "inner steps")
    num_problems = at_least("num_problems", num_problems, 1, "validation problems")
    seed = at_least("seed", seed, 0, "seed of the problems")
    if chunk is not None:
        chunk = at_least("chunk", chunk, 1, "problems at once")
    prototype = _prototype(optimizer)
    first_grid = _checked_grid(prototype, grid)

    spec = _spec(prototype, task, first_grid, horizon, num_problems, seed, dtype)
    key = hashlib.sha256(_canonical(spec).encode()).hexdigest()
    name = type(prototype).__name__.lower()
    path = None if cache_dir is None else Path(cache_dir) / f"{name}-{key[:24]}.json"
    found = None if path is None else _read_cache(path, key, tuple(first_grid))
    cached = found is not None
    if found is None:
        run = _Search(prototype, task, tuple(first_grid), horizon, num_problems, seed, device, dtype, chunk, progress)
        widened = run.search(first_grid)
        found = run.table, widened
        if path is not None:
            _write_cache(path, key, spec, run.table, widened)
    table, widened = found
    best = _best(table, tuple(first_grid))
    if math.isinf(table[best]):
        _LOG.warning("%s diverged with every hyperparameter of its grid on %s", name, task.name)
    hyperparameters = dict(zip(first_grid, best, strict=True))
    _LOG.info(
        "%s tuned on %d validation problems of %s (%s): %s, criterion %.4g, %d grid points",
        *(name, num_problems, task.name, "cached" if cached else f"{time.perf_counter() - begin:.1f} s"),
        *(", ".join(f"{k}={v:.4g}" for k, v in hyperparameters.items()), table[best], len(table)),
    )
    return Tuned(
        prototype.with_hyperparameters(**hyperparameters),
        hyperparameters,
        [{**dict(zip(first_grid, point, strict=True)), "criterion": value} for point, value in table.items()],
        {k: tuple(sorted({point[i] for point in table})) for i, k in enumerate(first_grid)},
        widened,
        num_problems,
        cached,
        time.perf_counter() - begin,
    )


@dataclass
class _Search:
    """A search in progress: what to run, and the criterion of each point so far."""

    prototype: Any
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
        self.table: dict[Point, float] = {}
        self.optimizer: Any = prepared(self.prototype, self.device, self.dtype)
        self.done = self.planned = 0
        if self.chunk is None:
            self.chunk = chunk_size(self.task, self.device)

    def search(self, grid: Grid) -> bool:
        """Fill the table; whether the grid had to be widened."""
        self.try_points(itertools.product(*grid.values()))
        if _RATE not in grid:
            return False
        widened = False
        for _ in range(_MAX_WIDENINGS):
            rates = self.wider(grid)
            if not rates:
                break
            widened = True
            self.try_points(itertools.product(*(rates if k == _RATE else v for k, v in grid.items())))
        else:
            if self.wider(grid):
                _LOG.warning(
                    "%s: the best learning rate on %s is still at an edge of its grid, %.3g",
                    type(self.prototype).__name__.lower(), self.task.name, self.best()[self.axis],
                )  # fmt: skip
        others = sorted({self.without_rate(point) for point in self.table})
        self.try_points(itertools.chain.from_iterable(self.finer(other) for other in others))
        return widened

    @property
    def axis(self) -> int:
        return self.names.index(_RATE)

    def best(self) -> Point:
        return _best(self.table, self.names)

    def without_rate(self, point: Point) -> Point:
        return point[: self.axis] + point[self.axis + 1 :]

    def wider(self, grid: Grid) -> list[float]:
        """Learning rates beyond the edge at which the best one lies; none if it is interior."""
        rates = sorted({point[self.axis] for point in self.table})
        best, given = self.best()[self.axis], sorted(grid[_RATE])
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
        assert self.chunk is not None
        total = len(points) * self.num_problems
        self.planned += total
        indices = tiled(self.num_problems, len(points))
        values = torch.tensor(points, dtype=self.dtype, device=self.device).repeat_interleave(self.num_problems, 0)
        scores = np.empty(total)
        for first in range(0, total, self.chunk):
            part = slice(first, min(first + self.chunk, total))
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
        last = losses[1:][-LAST:] if problem.stochastic else losses[-1:]
        return as_losses(last.cpu().double().mean(0).numpy())


def _prototype(optimizer: str | type[LearnedOptimizer] | LearnedOptimizer) -> Any:
    if isinstance(optimizer, str):
        return baseline(optimizer)()
    prototype = optimizer() if isinstance(optimizer, type) else optimizer
    if not hasattr(prototype, "with_hyperparameters"):
        raise ValueError(f"optimizer={type(prototype).__name__}: cannot be tuned, only {', '.join(BASELINES)} can")
    return prototype


def _checked_grid(prototype: Any, grid: Mapping[str, Iterable[float]] | None) -> Grid:
    known = list(prototype.hyperparameters)
    chosen = prototype.grid if grid is None else grid
    checked: Grid = {}
    for name, values in chosen.items():
        if name not in known:
            raise ValueError(f"grid.{name}: no hyperparameter has this name; {nearest(name, known)}")
        checked[name] = tuple(sorted({float(v) for v in values}))
        if not checked[name]:
            raise ValueError(f"grid.{name}=[]: must have at least one value")
    if not checked:
        raise ValueError(f"grid={{}}: must have at least one hyperparameter of {', '.join(known)}")
    if any(rate <= 0 for rate in checked.get(_RATE, ())):
        raise ValueError(f"grid.{_RATE}={list(checked[_RATE])}: all values must be > 0")
    return checked


def _best(table: Mapping[Point, float], names: tuple[str, ...]) -> Point:
    """The first of the best points; where all diverge, the one with the lowest learning rate."""
    best = min(table, key=table.__getitem__)
    if math.isinf(table[best]) and _RATE in names:
        return min(table, key=lambda point: point[names.index(_RATE)])
    return best


def _rounded(rate: float) -> float:
    return float(f"{rate:.6g}")


def _spec(
    prototype: Any, task: Task, grid: Grid, horizon: int, num_problems: int, seed: int, dtype: torch.dtype
) -> dict[str, Any]:
    """All that the table of a search depends on."""
    plain = (bool, int, float, str, tuple, type(None))
    fixed: dict[str, Any] = {
        k: v for k, v in vars(prototype).items() if isinstance(v, plain) and k != "training" and k[0] != "_"
    }
    for name, value in prototype.hyperparameters.items():
        if name not in grid:
            fixed[name] = torch.as_tensor(value).detach().tolist()
    cls = type(prototype)
    return {
        "task": task.spec(),
        "optimizer": f"{cls.__module__}.{cls.__qualname__}",
        "fixed": fixed,
        "grid": grid,
        "search": [_FINE, _MAX_WIDENINGS, _POINTS_PER_WIDENING],
        "horizon": horizon,
        "num_problems": num_problems,
        "seed": seed,
        "criterion": f"mean of the final loss, or of the last {LAST} if stochastic",
        "dtype": str(dtype),
        "version": ph_l2o.__version__,
    }


def _canonical(spec: Mapping[str, Any]) -> str:
    return json.dumps(spec, sort_keys=True, default=str)


def _write_cache(path: Path, key: str, spec: Mapping[str, Any], table: Mapping[Point, float], widened: bool) -> None:
    rows = [[*point, value if math.isfinite(value) else "inf"] for point, value in table.items()]
    content = {"key": key, "widened": widened, "table": rows, "spec": spec}
    write_atomically(path, json.dumps(content, default=str, indent=1, allow_nan=False) + "\n")


def _read_cache(path: Path, key: str, names: tuple[str, ...]) -> tuple[dict[Point, float], bool] | None:
    """The table of an earlier search, or None if there is none that can be used."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
        if content["key"] != key or not isinstance(content["widened"], bool):
            raise ValueError("it is of another search")
        table = {tuple(map(float, row[:-1])): float(row[-1]) for row in content["table"]}
        if not table or any(len(point) != len(names) for point in table) or any(map(math.isnan, table.values())):
            raise ValueError("its table is not complete")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        _LOG.warning("%s: damaged cache of a tuning, computed anew (%s: %s)", path, type(error).__name__, error)
        return None
    return table, content["widened"]
