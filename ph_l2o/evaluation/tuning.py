"""Tuning of classical optimizers by grid search on the validation split."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ph_l2o.checks import at_least, nearest
from ph_l2o.evaluation.baselines import baseline, schedule_of
from ph_l2o.evaluation.cache import cached
from ph_l2o.evaluation.grid_search import RATE, Grid, GridSearch, Table, best_point
from ph_l2o.evaluation.runner import Progress, num_coordinates
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.optimizers.scheduled import Scheduled
from ph_l2o.tasks.task import Task

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Tuned:
    """The outcome of `tune`.

    Attributes:
        optimizer: With the best hyperparameters.
        hyperparameters: Them, by name.
        schedule: Name of its schedule, the best one if several were tried; None if it has none.
        table: One row for each grid point that was tried: its hyperparameters and `criterion`, +∞ where any of its
            problems diverged to a loss that is not finite.
        grid: The values that were tried, by name, with the points of widening and refinement.
        widened: Whether the grid as given had its best learning rate at an edge.
        num_problems: Number of validation problems.
        cached: Whether the table was read from the cache.
        seconds: Wall-clock time that it took.
    """

    optimizer: Any
    hyperparameters: dict[str, float]
    schedule: str | None
    table: list[dict[str, Any]]
    grid: dict[str, tuple[Any, ...]]
    widened: bool
    num_problems: int
    cached: bool
    seconds: float


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
    last 10 losses, or of the last tenth if that is more. A loss in it that is not finite makes it +∞.

    The search has two stages. The coarse one tries all combinations of the grid; while the best learning rate
    is the lowest or highest, the grid is widened by 2 points on that side (4 times at most). The fine one
    tries, for each combination of the other hyperparameters, learning rates in steps of a quarter of a decade
    around its best. All points see the same problems and mini-batches; they run together, as one batch in
    which each problem occurs once for each grid point, or in chunks of such a batch.

    Args:
        optimizer: A classical optimizer: its name, such as `adam` or `adam+cosine`, its class, or an instance that
            fixes what is not in the grid.
        task: The task.
        horizon: Inner steps, >= 1; a schedule ends with them.
        num_problems: Number of validation problems, >= 1.
        seed: Seed of the problems, >= 0.
        grid: Values of each hyperparameter; None: the class's own. With `name+best`, schedules are tried too.
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
    prototype = _prototype(optimizer, horizon)
    name = optimizer if isinstance(optimizer, str) else type(prototype).__name__.lower()
    first_grid = _checked_grid(prototype, grid)
    names = tuple(first_grid)

    def search() -> tuple[Table, bool]:
        run = GridSearch(name, prototype, task, names, horizon, num_problems, seed, device, dtype, chunk, progress)
        widened = run.search(first_grid)
        return run.table, widened

    (table, widened), was_cached = cached(
        cache_dir, name,
        {"grid": first_grid, "horizon": horizon, "num_problems": num_problems, "seed": seed, "dtype": str(dtype),
         "device": torch.device(device).type},
        prototype.with_hyperparameters(**{k: values[0] for k, values in first_grid.items()}), task,
        make=search, write=_written, read=lambda content: _read(content, len(names)),
    )  # fmt: skip
    best = best_point(table, names)
    found = prototype.with_hyperparameters(**dict(zip(names, best, strict=True)))
    rows = [{**_named(prototype, names, point), "criterion": value} for point, value in table.items()]
    tuned = Tuned(
        found,
        {k: v for k, v in _named(prototype, names, best).items() if not isinstance(v, str)},
        schedule_of(found),
        rows,
        {k: tuple(dict.fromkeys(sorted(row[k] for row in rows))) for k in names},
        widened,
        num_problems,
        was_cached,
        time.perf_counter() - begin,
    )
    _log(name, task, tuned, table[best])
    return tuned


def _log(name: str, task: Task, tuned: Tuned, criterion: float) -> None:
    if math.isinf(criterion):
        _LOG.warning("%s diverged with every hyperparameter of its grid on %s", name, task.name)
    values = [f"{k}={v:.4g}" for k, v in tuned.hyperparameters.items()]
    values += [f"schedule={tuned.schedule}"] if tuned.schedule else []
    _LOG.info(
        "%s tuned on %d validation problems of %s (%s): %s, criterion %.4g, %d grid points",
        *(name, tuned.num_problems, task.name, "cached" if tuned.cached else f"{tuned.seconds:.1f} s"),
        *(", ".join(values), criterion, len(tuned.table)),
    )


def _named(prototype: Any, names: tuple[str, ...], point: tuple[float, ...]) -> dict[str, Any]:
    """A point by the names of its hyperparameters, with that of a schedule in place of its number."""
    row: dict[str, Any] = dict(zip(names, point, strict=True))
    if isinstance(prototype, Scheduled) and "schedule" in row:
        row["schedule"] = prototype.schedules[int(row["schedule"])]
    return row


def _prototype(optimizer: str | type[LearnedOptimizer] | LearnedOptimizer, horizon: int) -> Any:
    if isinstance(optimizer, str):
        return baseline(optimizer, horizon)
    prototype = optimizer() if isinstance(optimizer, type) else optimizer
    if not hasattr(prototype, "hyperparameters"):
        raise ValueError(f"optimizer={type(prototype).__name__}: cannot be tuned, only a classical optimizer can")
    return prototype


def _checked_grid(prototype: Any, grid: Mapping[str, Iterable[float]] | None) -> Grid:
    known = list(prototype.hyperparameters)
    chosen = prototype.grid if grid is None else grid
    if isinstance(prototype, Scheduled):
        chosen = {k: v for k, v in prototype.grid.items() if k == "schedule"} | dict(chosen)
    checked: Grid = {}
    for name, values in chosen.items():
        if name not in known:
            raise ValueError(f"grid.{name}: no hyperparameter has this name; {nearest(name, known)}")
        checked[name] = tuple(sorted({float(v) for v in values}))
        if not checked[name]:
            raise ValueError(f"grid.{name}=[]: must have at least one value")
    if not checked:
        raise ValueError(f"grid={{}}: must have at least one hyperparameter of {', '.join(known)}")
    if any(rate <= 0 for rate in checked.get(RATE, ())):
        raise ValueError(f"grid.{RATE}={list(checked[RATE])}: all values must be > 0")
    return checked


def _written(found: tuple[Table, bool]) -> dict[str, Any]:
    table, widened = found
    return {"widened": widened, "table": [[*point, value] for point, value in table.items()]}


def _read(content: dict[str, Any], num_names: int) -> tuple[Table, bool]:
    table = {tuple(map(float, row[:-1])): float(row[-1]) for row in content["table"]}
    if not table or any(len(point) != num_names for point in table) or any(map(math.isnan, table.values())):
        raise ValueError("its table is not complete")
    return table, bool(content["widened"])
