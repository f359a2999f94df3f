"""Compare optimizers on a suite of tasks: how well does what was learned carry over?"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from ph_l2o.checks import at_least
from ph_l2o.evaluation import estimates as stats
from ph_l2o.evaluation.baselines import Optimizers, baseline, check_grids, named_optimizers
from ph_l2o.evaluation.plots import to_png
from ph_l2o.evaluation.result_files import provenance
from ph_l2o.evaluation.suite_outcome import SuiteOutcome, TaskOutcome
from ph_l2o.evaluation.suite_plots import plot_ratios, plot_suite_curves
from ph_l2o.evaluation.suite_ratios import summarize_ratios, task_ratios
from ph_l2o.evaluation.suite_runs import cached_run
from ph_l2o.evaluation.suite_tables import plain_tables
from ph_l2o.evaluation.tuning import tune
from ph_l2o.files import write_atomically
from ph_l2o.keys import ProblemKeys, Purpose
from ph_l2o.tasks.task import Task

_LOG = logging.getLogger(__name__)
_RATES = 7  # learning rates of a baseline's first grid
REFERENCE = "adam"


class SuiteTask(NamedTuple):
    """A task of a suite, and the inner steps on it."""

    task: Task
    horizon: int


@dataclass(frozen=True, eq=False)
class SuiteComparison(SuiteOutcome):
    """The outcome of `compare_suite`, with its tables and figures."""

    def plot(self, folder: str | Path) -> tuple[Path, Path]:
        """Write `suite_curves.png`, learning curves on each task, and `suite_ratios.png`, bars of the ratios."""
        return (
            write_atomically(Path(folder) / "suite_curves.png", to_png(plot_suite_curves(self))),
            write_atomically(Path(folder) / "suite_ratios.png", to_png(plot_ratios(self))),
        )

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
    check_grids(grids)
    roles = {n: "baseline" if isinstance(o, str) else "learned" for n, o in named.items()}
    settings = {
        "seed": seed,
        "num_problems": num_problems,
        "tuning_problems": tuning_problems,
        "optimizers": list(named),
        "tasks": {n: {"horizon": e.horizon, **e.task.spec()} for n, e in entries.items()},
        **provenance(),
    }
    how = {"seed": seed, "device": device, "dtype": dtype, "chunk": chunk}
    outcomes: dict[str, TaskOutcome] = {}
    draws: dict[str, dict[str, dict[str, stats.Array]]] = {}
    made = SuiteComparison(name, {}, len(entries), roles, {}, settings)
    for number, (key, entry) in enumerate(entries.items()):
        runs, tuned = {}, {}
        for label, optimizer in named.items():
            if isinstance(optimizer, str):
                grid = (grids or {}).get(optimizer) or rates(optimizer)
                tuned[label] = tune(
                    optimizer, entry.task, horizon=entry.horizon, num_problems=tuning_problems, grid=grid,
                    cache_dir=cache_dir, **how,
                )  # fmt: skip
                optimizer = tuned[label].optimizer
            folder = cache_dir and Path(cache_dir) / "suite"
            runs[label] = cached_run(
                optimizer, *entry, num_problems=num_problems, cache_dir=folder, label=f"{key}-{label}", **how
            )
        generator = ProblemKeys(seed, "test", number, ()).episode_generator(Purpose.BOOTSTRAP)
        judged, references = {n: r.judged for n, r in runs.items()}, {n: runs[n].as_reference for n in tuned}
        best, ratios, draws[key] = task_ratios(judged, references, REFERENCE, generator)
        outcomes[key] = TaskOutcome(entry.horizon, runs, tuned, best, ratios)
        summary = summarize_ratios({k: o.ratios for k, o in outcomes.items()}, draws)
        made = SuiteComparison(name, dict(outcomes), len(entries), roles, summary, settings)
        _LOG.info("%s (%d of %d): %s", key, number + 1, len(entries), _in_words(outcomes[key], roles))
        if after_task is not None:
            after_task(made)
    return made


def rates(name: str) -> dict[str, tuple[float, ...]]:
    """The learning rates that a baseline's search begins with: the seven lowest of its class's."""
    return {"lr": tuple(sorted(baseline(name, 1).grid["lr"])[:_RATES])}


def _checked(suite: Mapping[str, SuiteTask | tuple[Task, int]]) -> dict[str, SuiteTask]:
    if not suite:
        raise ValueError("suite={}: must have at least one task")
    entries = {key: SuiteTask(*entry) for key, entry in suite.items()}
    for key, entry in entries.items():
        at_least(f"suite.{key}.horizon", entry.horizon, 1, "inner steps")
        if entry.task.can_be_negative:
            raise ValueError(f"suite.{key}={entry.task.name}: its losses can be negative, so ratios have no meaning")
    return entries


def _in_words(outcome: TaskOutcome, roles: Mapping[str, str]) -> str:
    losses = ", ".join(f"{n} {stats.mean(r.losses):.4g}" for n, r in outcome.runs.items())
    learned = [n for n, kind in roles.items() if kind != "baseline"]
    ratios = [f"{n} {r.value:.3g} to {k}" for n in learned for k, r in outcome.ratios[n].items()]
    return f"loss {losses}" + (f"; ratio {', '.join(ratios)}" if ratios else "")
