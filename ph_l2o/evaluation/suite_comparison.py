"""Compare optimizers on a suite of tasks: how well does what was learned carry over?"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ph_l2o.checks import at_least, nearest
from ph_l2o.evaluation import statistics as stats
from ph_l2o.evaluation.comparison import Optimizers, named_optimizers
from ph_l2o.evaluation.suite_ratios import Ratio, Summary, summarize, task_ratios
from ph_l2o.evaluation.suite_runs import Run, cached_run
from ph_l2o.evaluation.suite_tables import plain_tables
from ph_l2o.evaluation.tuning import BASELINES, baseline, tune
from ph_l2o.files import json_text, write_atomically
from ph_l2o.keys import ProblemKeys, Purpose
from ph_l2o.tasks.task import Task

if TYPE_CHECKING:
    from pandas import DataFrame

_LOG = logging.getLogger(__name__)
_RATES = 7  # learning rates of a baseline's first grid
REFERENCE = "adam"


class SuiteTask(NamedTuple):
    """A task of a suite, and the inner steps on it."""

    task: Task
    horizon: int


@dataclass(frozen=True, eq=False)
class TaskOutcome:
    """What all optimizers reached on a task.

    Attributes:
        horizon: Inner steps.
        runs: By optimizer.
        hyperparameters: Of the tuned baselines, by optimizer.
        best_baseline: The tuned baseline with the lowest mean loss on the test problems; None if there is none.
        ratios: By optimizer: to the tuned Adam, and to the best baseline.
    """

    horizon: int
    runs: dict[str, Run]
    hyperparameters: dict[str, dict[str, float]]
    best_baseline: str | None
    ratios: dict[str, dict[str, Ratio]]


@dataclass(frozen=True, eq=False)
class SuiteComparison:
    """The outcome of `compare_suite`, or of the part of it that is done.

    Attributes:
        name: Of the suite.
        tasks: Outcomes by task, as far as they are done.
        num_tasks: Tasks of the whole suite.
        kinds: `learned` or `baseline`, by optimizer.
        summary: Over tasks, by optimizer: of the ratios to Adam, and to the best baseline.
        settings: How the comparison was made.
    """

    name: str
    tasks: dict[str, TaskOutcome]
    num_tasks: int
    kinds: dict[str, str]
    summary: dict[str, dict[str, Summary]]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row for each task and optimizer, with Python's inf and None."""
        return [self._row(task, name) for task, outcome in self.tasks.items() for name in outcome.runs]

    def _row(self, task: str, name: str) -> dict[str, Any]:
        outcome = self.tasks[task]
        run = outcome.runs[name]
        ratios = {f"ratio_to_{k}": {"ratio": r.value, "ci95": list(r.ci95)} for k, r in outcome.ratios[name].items()}
        return {
            "task": task,
            "horizon": outcome.horizon,
            "parameters": run.coordinates,
            "optimizer": name,
            "kind": self.kinds[name],
            "loss": stats.mean(run.losses),
            "losses": run.losses.tolist(),
            "starts": run.starts.tolist(),
            "diverged": int(run.diverged.sum()),
            "best_baseline": outcome.best_baseline,
            **ratios,
            "step_seconds": run.step_seconds,
            "hyperparameters": outcome.hyperparameters.get(name),
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """The comparison as JSON, infinity as the string "inf"; with a path, it is also written there."""
        summary = {n: {f"ratio_to_{k}": s._asdict() for k, s in parts.items()} for n, parts in self.summary.items()}
        complete = len(self.tasks) == self.num_tasks
        content = {"suite": self.name, "complete": complete, **self.settings, "summary": summary, "rows": self.rows}
        text = json_text(content)
        if path is not None:
            write_atomically(path, text)
        return text

    def to_frame(self) -> DataFrame:
        """One line for each task and optimizer; the parts of a ratio become columns."""
        import pandas as pd

        flat = []
        for row in self.rows:
            line = {k: v for k, v in row.items() if not isinstance(v, dict | list)}
            for key in ("ratio_to_adam", "ratio_to_best_baseline"):
                if key in row:
                    line[key] = row[key]["ratio"]
                    line[f"{key}_low"], line[f"{key}_high"] = row[key]["ci95"]
            line["learning_rate"] = (row["hyperparameters"] or {}).get("lr")
            flat.append(line)
        return pd.DataFrame(flat)

    def to_csv(self, path: str | Path) -> Path:
        """Write `to_frame` as a CSV file."""
        return write_atomically(path, self.to_frame().to_csv(index=False))

    def plot(self, folder: str | Path) -> tuple[Path, Path]:
        """Write `suite_curves.png`, learning curves on each task, and `suite_ratios.png`, bars of the ratios."""
        from ph_l2o.evaluation.plots import to_png
        from ph_l2o.evaluation.suite_plots import plot_ratios, plot_suite_curves

        return (
            write_atomically(Path(folder) / "suite_curves.png", to_png(plot_suite_curves(self))),
            write_atomically(Path(folder) / "suite_ratios.png", to_png(plot_ratios(self))),
        )

    def judged(self) -> list[str]:
        """The optimizers that the suite is about: those not tuned here, or all where all were."""
        return [n for n, kind in self.kinds.items() if kind != "baseline"] or list(self.kinds)

    def __str__(self) -> str:
        return plain_tables(self)


def compare_suite(
    optimizers: Optimizers,
    suite: Mapping[str, SuiteTask | tuple[Task, int]],
    seed: int = 0,
    *,
    num_problems: int = 5,
    tuning_problems: int = 2,
    grids: Mapping[str, Mapping[str, Iterable[float]]] | None = None,
    cache_dir: str | Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    chunk: int | None = None,
    name: str = "suite",
    after_task: Callable[[SuiteComparison], None] | None = None,
) -> SuiteComparison:
    """Run optimizers on the same test problems of each task of a suite.

    A baseline's name stands for one that is tuned on each task's validation split, at the task's horizon: by `tune`,
    but over the learning rate alone, seven of the class's own to begin with, which are widened while the best one is at
    an edge, and then refined. An optimizer's loss on a task is the mean over problems of the mean over the last tenth
    of its steps. A ratio is loss(reference) / loss(optimizer): above 1 is better than the reference. It is 0 where the
    optimizer diverged on any problem; a reference that diverged counts with the start's loss at most. Intervals are
    95 % percentile bootstrap intervals over problems; in each resample the best baseline is chosen anew.

    Args:
        optimizers: As for `compare`.
        suite: Tasks and their horizons by name.
        seed: Seed of the problems, >= 0.
        num_problems: Test problems of each task, >= 2.
        tuning_problems: Validation problems of each task, >= 2.
        grids: Grid of each baseline by its name, in place of the learning rates above.
        cache_dir: Folder in which the results of tuning and of runs are kept, each as soon as it is done, and from
            which they are read; None: they are not.
        device: Where to run.
        dtype: Floating-point type of the parameters.
        chunk: Problems to run at once, >= 1; None: chosen by their size.
        name: Of the suite, for titles.
        after_task: Called with what is done so far, after each task.

    Raises:
        ValueError: If an argument is out of range, a name is unknown, or a task's losses can be negative.
    """
    seed = at_least("seed", seed, 0, "seed of the problems")
    num_problems = at_least("num_problems", num_problems, 2, "test problems of each task")
    tuning_problems = at_least("tuning_problems", tuning_problems, 2, "validation problems of each task")
    named = named_optimizers(optimizers)
    entries = _checked(suite)
    for grid in grids or {}:
        if grid not in BASELINES:
            raise ValueError(f"grids.{grid}=…: no baseline has this name; {nearest(grid, BASELINES)}")
    kinds = {n: "baseline" if isinstance(o, str) else "learned" for n, o in named.items()}
    settings = {
        "seed": seed,
        "num_problems": num_problems,
        "tuning_problems": tuning_problems,
        "optimizers": list(named),
        "tasks": {n: {"horizon": e.horizon, **e.task.spec()} for n, e in entries.items()},
    }
    outcomes: dict[str, TaskOutcome] = {}
    draws: dict[str, dict[str, dict[str, stats.Array]]] = {}
    made = SuiteComparison(name, {}, len(entries), kinds, {}, settings)
    for number, (key, entry) in enumerate(entries.items()):
        runs, hyperparameters = {}, {}
        for label, optimizer in named.items():
            if isinstance(optimizer, str):
                tuned = tune(
                    optimizer, entry.task, horizon=entry.horizon, num_problems=tuning_problems, seed=seed,
                    grid=(grids or {}).get(optimizer) or rates(optimizer), cache_dir=cache_dir,
                    device=device, dtype=dtype, chunk=chunk,
                )  # fmt: skip
                optimizer, hyperparameters[label] = tuned.optimizer, tuned.hyperparameters
            runs[label] = cached_run(
                optimizer, entry.task, cache_dir=cache_dir and Path(cache_dir) / "suite", label=f"{key}-{label}",
                horizon=entry.horizon, num_problems=num_problems, seed=seed, device=device, dtype=dtype, chunk=chunk,
            )  # fmt: skip
        generator = ProblemKeys(seed, "test", number, ()).episode_generator(Purpose.BOOTSTRAP)
        best, ratios, draws[key] = task_ratios(
            {n: r.judged for n, r in runs.items()},
            {n: runs[n].as_reference for n in hyperparameters},
            REFERENCE,
            generator,
        )
        outcomes[key] = TaskOutcome(entry.horizon, runs, hyperparameters, best, ratios)
        summary = summarize({k: o.ratios for k, o in outcomes.items()}, draws)
        made = SuiteComparison(name, dict(outcomes), len(entries), kinds, summary, settings)
        _LOG.info("%s (%d of %d): %s", key, number + 1, len(entries), _in_words(outcomes[key], kinds))
        if after_task is not None:
            after_task(made)
    return made


def rates(name: str) -> dict[str, tuple[float, ...]]:
    """The learning rates that a baseline's search begins with: the seven lowest of its class's."""
    return {"lr": tuple(sorted(baseline(name).grid["lr"])[:_RATES])}


def _checked(suite: Mapping[str, SuiteTask | tuple[Task, int]]) -> dict[str, SuiteTask]:
    if not suite:
        raise ValueError("suite={}: must have at least one task")
    entries = {key: SuiteTask(*entry) for key, entry in suite.items()}
    for key, entry in entries.items():
        at_least(f"suite.{key}.horizon", entry.horizon, 1, "inner steps")
        if entry.task.can_be_negative:
            raise ValueError(f"suite.{key}={entry.task.name}: its losses can be negative, so ratios have no meaning")
    return entries


def _in_words(outcome: TaskOutcome, kinds: Mapping[str, str]) -> str:
    losses = ", ".join(f"{n} {stats.mean(r.losses):.4g}" for n, r in outcome.runs.items())
    learned = [n for n, kind in kinds.items() if kind != "baseline"]
    ratios = [f"{n} {r.value:.3g} to {k}" for n in learned for k, r in outcome.ratios[n].items()]
    return f"loss {losses}" + (f"; ratio {', '.join(ratios)}" if ratios else "")
