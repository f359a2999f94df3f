"""Escapes from saddles: steps, share and scaling with the negative curvature, for any optimizers."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ph_l2o.checks import at_least
from ph_l2o.evaluation import estimates as stats
from ph_l2o.evaluation.baselines import (
    Entry,
    Optimizers,
    baseline,
    hyperparameters_of,
    named_optimizers,
    ready,
    schedule_of,
)
from ph_l2o.evaluation.escape_runs import Escapes, EscapeSearch, count_steps, quantile
from ph_l2o.evaluation.escape_statistics import or_none, ratios, resampled, slope, wilson
from ph_l2o.evaluation.grid_search import best_point
from ph_l2o.evaluation.result_files import ResultFiles, provenance
from ph_l2o.evaluation.runner import chunk_size, prepared
from ph_l2o.evaluation.tables import aligned
from ph_l2o.keys import ProblemKeys
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.tasks.task import Task

_LOG = logging.getLogger(__name__)
_QUARTILES = (0.25, 0.5, 0.75)
_HEADER = ["optimizer", "task", "steps", "quartiles", "escaped", "diverged"]


@dataclass(frozen=True, eq=False)
class EscapeMeasurement(ResultFiles):
    """The outcome of `measure_escapes`.

    Attributes:
        horizon: Inner steps at most.
        num_problems: Test problems of each task.
        tuning_problems: Validation problems of each task.
        tuning_share: Share of them by whose steps baselines were tuned.
        seed: Seed of the problems.
        rows: One for each optimizer and task: `optimizer`, `kind` (`learned`, `baseline` if tuned here, `classical`),
            `task`, `curvature` (its number, or None), `steps` (`median`, `low` and `high` quartile; None: beyond the
            horizon), `escaped` (of the problems), `fraction` and its Wilson interval `ci95`, `diverged`,
            `hyperparameters`, `schedule`, and of what is not a tuned baseline `ratios`: its median over each tuned
            baseline's, with a bootstrap interval; None where either never escaped.
        slopes: One for each optimizer, where tasks have two numbers or more: the least-squares `slope` of log median
            steps against log 1/γ, and its bootstrap interval `ci95`; None where a median lies beyond the horizon.
        steps: Steps of each problem, `(P,)`, ∞ if it never escaped, by optimizer and task.
        made_with: Revision of the code, and versions.
    """

    horizon: int
    num_problems: int
    tuning_problems: int
    tuning_share: float
    seed: int
    rows: list[dict[str, Any]]
    slopes: list[dict[str, Any]]
    steps: dict[tuple[str, str], stats.Array]
    made_with: dict[str, Any] = field(default_factory=provenance)

    def to_dict(self) -> dict[str, Any]:
        """See `ResultFiles`."""
        sizes = {
            name: getattr(self, name) for name in ("horizon", "num_problems", "tuning_problems", "tuning_share", "seed")
        }
        return {**sizes, **self.made_with, "rows": self.rows, "slopes": self.slopes}

    def flat_rows(self) -> list[dict[str, Any]]:
        """See `ResultFiles`."""
        flat = []
        for row in self.rows:
            plain = {k: v for k, v in row.items() if k not in ("steps", "ci95", "hyperparameters", "ratios")}
            low, high = row["ci95"]
            steps = {f"steps_{k}": v for k, v in row["steps"].items()}
            flat.append(plain | steps | {"fraction_low": low, "fraction_high": high} | (row["hyperparameters"] or {}))
        return flat

    def __str__(self) -> str:
        lines = []
        for row in self.rows:
            median, low, high = (_shown(row["steps"][k]) for k in ("median", "low", "high"))
            share = f"{row['escaped']}/{self.num_problems}"
            lines.append([row["optimizer"], row["task"], median, f"{low} – {high}", share, str(row["diverged"])])
        text = [f"Steps to escape, {self.horizon} at most, {self.num_problems} test problems", aligned(_HEADER, lines)]
        for row in self.slopes:
            low, high = row["ci95"]
            text.append(f"{row['optimizer']}: slope {_shown(row['slope'])} [{_shown(low)}, {_shown(high)}]")
        return "\n".join(text)


def measure_escapes(
    optimizers: Optimizers,
    tasks: Task | Mapping[float, Task] | Mapping[str, Task],
    *,
    horizon: int = 10_000,
    num_problems: int = 256,
    tuning_problems: int = 64,
    tuning_share: float = 0.5,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Callable[[str, int, int], None] | None = None,
) -> EscapeMeasurement:
    """Count the inner steps that optimizers need to escape, on the same problems of the test split.

    A baseline's name (`adam`, `adam+cosine`, `adam+best`) is tuned before, on each task by itself, on its validation
    problems: over the grid of its class, which is widened while the best learning rate is at an edge and refined
    around the best, for the lowest median of the steps to escape (where no point of the grid has one within the
    horizon, for the lowest loss then). A setting with a low median can leave many problems behind; a `tuning_share`
    of .9 asks for the steps by which 90 % have escaped. Problem i of one seed is the same for every optimizer, and of
    `Saddle` tasks that differ in γ alone it has the same rotation and the same start.

    Args:
        optimizers: As of `compare`: by name, or a list; a string is a baseline's name.
        tasks: A task whose problems have `escaped`; or several by name. A number is a name too, and stands for γ: two
            or more of them give slopes.
        horizon: Inner steps at most, >= 1; schedules end with them.
        num_problems: Test problems of each task, >= 2.
        tuning_problems: Validation problems of each task, >= 2.
        tuning_share: Share of these in (0, 1] by whose steps baselines are tuned; .5: by the median.
        seed: Seed of the problems, >= 0.
        device: Where to run.
        dtype: Floating-point type of the parameters.
        progress: Called with what comes next ("adam: 0.01"), how many of these are done, and of how many.

    Raises:
        ValueError: If an argument is out of range, a name is unknown, or a task has no test of escape.

    Example:
        >>> from ph_l2o.optimizers.classical import Momentum
        >>> from ph_l2o.tasks.saddles import Saddle
        >>> tasks = {gamma: Saddle(curvature=gamma) for gamma in (0.1, 0.05)}
        >>> found = measure_escapes({"momentum": Momentum(lr=1.0)}, tasks, horizon=100, num_problems=8)
        >>> [row["escaped"] for row in found.rows]
        [8, 8]
    """
    horizon = at_least("horizon", horizon, 1, "inner steps")
    num_problems = at_least("num_problems", num_problems, 2, "test problems")
    tuning_problems = at_least("tuning_problems", tuning_problems, 2, "validation problems")
    seed = at_least("seed", seed, 0, "seed of the problems")
    if not 0 < tuning_share <= 1:
        raise ValueError(f"tuning_share={tuning_share}: must be in (0, 1] (share of the validation problems)")
    named = named_optimizers(optimizers)
    by_name: dict[Any, Task] = dict(tasks) if isinstance(tasks, Mapping) else {tasks.name: tasks}
    if not by_name:
        raise ValueError("tasks={}: must have at least one task")
    for key in by_name:
        if not isinstance(key, str) and not 0 < key < math.inf:
            raise ValueError(f"tasks[{key}]: a number must be > 0 and finite (γ), or take a name")
    for task in by_name.values():
        if not hasattr(task.sample(ProblemKeys(seed, "val", 0, range(1))), "escaped"):
            raise ValueError(
                f"tasks: problems of {task.name} have no test of escape; take a task such as ph_l2o.tasks.Saddle"
            )
    how = {"horizon": horizon, "seed": seed, "device": device, "dtype": dtype}
    rows: list[dict[str, Any]] = []
    steps: dict[tuple[str, str], stats.Array] = {}
    pairs = [(name, key) for name in named for key in by_name]
    for done, (name, key) in enumerate(pairs):
        if progress is not None:
            progress(f"{name}: {key}", done, len(pairs))
        row, escapes = _measured(name, named[name], by_name[key], num_problems, (tuning_problems, tuning_share), how)
        rows.append(row | {"task": str(key), "curvature": None if isinstance(key, str) else float(key)})
        steps[name, str(key)] = escapes.steps
    resamples = resampled(num_problems, seed)
    for row in rows:
        row["ratios"] = None if row["kind"] == "baseline" else ratios(row, rows, steps, resamples)
    gammas = [key for key in by_name if not isinstance(key, str)]
    slopes = [slope(name, gammas, steps, resamples) for name in named] if len(gammas) > 1 else []
    return EscapeMeasurement(horizon, num_problems, tuning_problems, tuning_share, seed, rows, slopes, steps)


def _measured(
    name: str, entry: Entry, task: Task, num_problems: int, tuning: tuple[int, float], how: dict[str, Any]
) -> tuple[dict[str, Any], Escapes]:
    """The row of an optimizer on a task, after tuning where it is to be tuned."""
    runs, kind, widened = ready(entry, how["horizon"]), "learned", None
    if runs is None:
        assert isinstance(entry, str)
        kind, (runs, widened) = "baseline", _tuned(entry, task, *tuning, how)
    elif hasattr(runs, "hyperparameters"):
        kind = "classical"
    made = prepared(runs, how["device"], how["dtype"])
    size = chunk_size(task, how["device"])
    parts = [
        count_steps(lambda _: made, task, range(first, min(first + size, num_problems)), split="test", **how)
        for first in range(0, num_problems, size)
    ]
    escapes = Escapes(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    count = int(np.isfinite(escapes.steps).sum())
    low, median, high = (quantile(escapes.steps, share) for share in _QUARTILES)
    row = {
        "optimizer": name,
        "kind": kind,
        "steps": {"median": or_none(median), "low": or_none(low), "high": or_none(high)},
        "escaped": count,
        "fraction": count / num_problems,
        "ci95": wilson(count, num_problems),
        "diverged": int(escapes.diverged.sum()),
        "hyperparameters": hyperparameters_of(made),
        "schedule": schedule_of(made),
        "grid_widened": widened,
    }
    _LOG.info("%s on %s: median %s steps, %d of %d escaped", name, task.name, _shown(median), count, num_problems)
    return row, escapes


def _tuned(
    name: str, task: Task, num_problems: int, share: float, how: dict[str, Any]
) -> tuple[LearnedOptimizer, bool]:
    prototype = baseline(name, how["horizon"])
    grid = {key: tuple(sorted(values)) for key, values in prototype.grid.items()}
    names = tuple(grid)
    search = EscapeSearch(
        name, prototype, task, names, how["horizon"], num_problems, how["seed"], how["device"], how["dtype"], None,
        None, share,
    )  # fmt: skip
    widened = search.search(grid)
    best = best_point(search.table, names)
    return prototype.with_hyperparameters(**dict(zip(names, best, strict=True))), widened


def _shown(value: float | None) -> str:
    return "never" if value is None or math.isinf(value) else f"{value:.3g}"
