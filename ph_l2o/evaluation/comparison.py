"""Compare optimizers on the same test problems."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ph_l2o.checks import at_least
from ph_l2o.evaluation import estimates as stats
from ph_l2o.evaluation.baselines import Entry, Optimizers, check_grids, named_optimizers, ready
from ph_l2o.evaluation.comparison_rows import Outcome, Row, comparison_rows, flat_row
from ph_l2o.evaluation.plots import plot_curves, to_png
from ph_l2o.evaluation.result_files import ResultFiles, provenance
from ph_l2o.evaluation.runner import evaluate_optimizer
from ph_l2o.evaluation.tables import html_table, paired_table, plain_table
from ph_l2o.evaluation.tuning import default_num_problems, tune
from ph_l2o.files import write_atomically
from ph_l2o.processes import Processes
from ph_l2o.tasks.task import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Comparison(ResultFiles):
    """The outcome of `compare`.

    Attributes:
        task: Name of the task.
        horizon: Inner steps.
        num_problems: Test problems.
        seed: Seed of the problems.
        config: How the comparison was made.
        best_baseline: The tuned baseline with the lowest mean of the final loss; None if no baseline was
            tuned.
        rows: One row for each optimizer, as in `to_json`, with Python's inf and None.
        curves: Median and quartiles over problems of each optimizer's loss_0 … loss_T.
        finals: Final loss of each problem, `(P,)`, by optimizer.
        made_with: Revision of the code, and versions.
    """

    task: str
    horizon: int
    num_problems: int
    seed: int
    config: dict[str, Any]
    best_baseline: str | None
    rows: list[Row]
    curves: dict[str, stats.Curve]
    finals: dict[str, stats.Array]
    made_with: dict[str, Any] = field(default_factory=provenance)

    def to_dict(self) -> dict[str, Any]:
        """See `ResultFiles`."""
        return {
            "task": self.task,
            "horizon": self.horizon,
            "num_problems": self.num_problems,
            "seed": self.seed,
            "config": self.config,
            **self.made_with,
            "best_baseline": self.best_baseline,
            "rows": self.rows,
        }

    def flat_rows(self) -> list[dict[str, Any]]:
        """See `ResultFiles`."""
        return [flat_row(row) for row in self.rows]

    def plot(self, path: str | Path | None = None, *, size: tuple[float, float] = (7.2, 4.3)) -> tuple[Figure, Axes]:
        """Learning curves; with a path, they are also written there, as a PNG file.

        Args:
            path: Where to write.
            size: Width and height in inches.
        """
        learned = [row["optimizer"] for row in self.rows if row["kind"] == "learned"]
        figure, axes = plot_curves(
            self.curves, title=self.task, emphasized=learned, num_problems=self.num_problems, size=size
        )
        if path is not None:
            write_atomically(path, to_png(figure))
        return figure, axes

    def _repr_html_(self) -> str:
        return html_table(self._title(), self.rows)

    def __str__(self) -> str:
        paired = paired_table(self.rows)
        return f"{self._title()}\n{plain_table(self.rows)}" + (f"\n\n{paired}" if paired else "")

    def _title(self) -> str:
        against = f"; differences are paired, to {self.best_baseline}" if self.best_baseline else ""
        return f"{self.task}: loss after {self.horizon} steps, {self.num_problems} test problems{against}"


def compare(
    optimizers: Optimizers,
    task: Task,
    horizon: int = 100,
    num_problems: int = 64,
    seed: int = 0,
    *,
    tuning_problems: int | None = None,
    grids: Mapping[str, Mapping[str, Iterable[float]]] | None = None,
    cache_dir: str | Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    chunk: int | None = None,
    config: Mapping[str, Any] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    processes: Processes | None = None,
) -> Comparison:
    """Run optimizers on the same problems of the test split: same starts, same mini-batches.

    A name, such as `adam`, `adam+cosine` or `adam+best`, stands for a classical optimizer, which is tuned on the
    validation split first (see `tune` and `ph_l2o.evaluation.baselines`), `adam+untuned` for one that is not. An
    `InMode` (`ph_l2o.evaluation.modes`) is a learned optimizer in modes that can depend on the horizon.
    Intervals are 95 % percentile bootstrap intervals over problems, whose resamples all optimizers share.

    Args:
        optimizers: A mapping from names to optimizers; or optimizers, each named by its class in lower case.
            In both, a baseline's name can take an optimizer's place.
        task: The task.
        horizon: Inner steps, >= 1.
        num_problems: Test problems, >= 2.
        seed: Seed of the problems, >= 0.
        tuning_problems: Validation problems, >= 2; None: `default_num_problems`.
        grids: Grid of each baseline by the name that stands for it above, in place of the class's own.
        cache_dir: Folder in which results of tuning are kept; None: they are not.
        device: Where to run.
        dtype: Floating-point type of the parameters.
        chunk: Problems to run at once, >= 1; None: chosen by their size.
        config: What the JSON file says of how the comparison was made; None: the arguments.
        progress: Called with what is going on ("adam: tuning"), how much of it is done, and of how much; not with
            `processes`.
        processes: That share the optimizers out, and change no result; None: they run here, one by one.

    Raises:
        ValueError: If an argument is out of range, or a name is unknown.

    Example:
        >>> from ph_l2o.optimizers.classical import Adam
        >>> from ph_l2o.tasks.quadratic import Quadratic
        >>> comparison = compare({"slow": Adam(lr=1e-3), "fast": Adam(lr=0.3)}, Quadratic(2), horizon=20)
        >>> slow, fast = comparison.rows
        >>> slow["final"]["median"] > fast["final"]["median"]
        True
    """
    horizon = at_least("horizon", horizon, 1, "inner steps")
    num_problems = at_least("num_problems", num_problems, 2, "test problems")
    seed = at_least("seed", seed, 0, "seed of the problems")
    named = named_optimizers(optimizers)
    check_grids(grids)
    if tuning_problems is not None:
        tuning_problems = at_least("tuning_problems", tuning_problems, 2, "validation problems")
    elif any(ready(optimizer, horizon) is None for optimizer in named.values()):
        tuning_problems = default_num_problems(task, num_problems)

    sizes = {"horizon": horizon, "num_problems": num_problems, "tuning_problems": tuning_problems, "seed": seed}
    how = {"cache_dir": cache_dir, "device": device, "dtype": dtype, "chunk": chunk}

    start = functools.partial if processes is None else processes.start
    told = progress if processes is None else None
    runs = {
        name: start(
            _outcome, name, optimizer, task, progress=told, **sizes, **how,
            grid=(grids or {}).get(optimizer) if isinstance(optimizer, str) else None,
        )
        for name, optimizer in named.items()
    }  # fmt: skip
    outcomes: dict[str, Outcome] = {}
    for name, run in runs.items():
        outcomes[name] = run()
        _LOG.info("%s: final loss %.4g (mean of %d)", name, stats.mean(outcomes[name].final), num_problems)

    rows, best = comparison_rows(outcomes, seed=seed, can_be_negative=task.can_be_negative)
    arguments = {
        "task": task.spec(),
        "tuning_problems": tuning_problems,
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
    }
    return Comparison(
        task.name, horizon, num_problems, seed, dict(arguments if config is None else config), best, rows,
        {name: outcome.curve for name, outcome in outcomes.items()},
        {name: outcome.final for name, outcome in outcomes.items()},
    )  # fmt: skip


def _outcome(
    name: str, optimizer: Entry, task: Task, *, horizon: int, num_problems: int, tuning_problems: int | None, seed: int,
    grid: Mapping[str, Iterable[float]] | None, cache_dir: str | Path | None,
    progress: Callable[[str, int, int], None] | None, **how: Any,
) -> Outcome:  # fmt: skip
    """An optimizer's run, after tuning where it is to be tuned."""

    def step(what: str) -> Callable[[int, int], None] | None:
        return None if progress is None else functools.partial(progress, f"{name}: {what}")

    tuned, runs = None, ready(optimizer, horizon)
    if runs is None:
        assert tuning_problems is not None and isinstance(optimizer, str)
        tuned = tune(
            optimizer, task, horizon=horizon, num_problems=tuning_problems, seed=seed, grid=grid, cache_dir=cache_dir,
            progress=step("tuning"), **how,
        )  # fmt: skip
        runs = tuned.optimizer
    result = evaluate_optimizer(
        runs, task, horizon=horizon, num_problems=num_problems, seed=seed, progress=step("test"), **how
    )
    return Outcome.of(runs, tuned, result)
