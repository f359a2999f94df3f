"""Compare optimizers on a suite of tasks: how well does what was learned carry over?"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ph_l2o.checks import at_least
from ph_l2o.evaluation import estimates as stats
from ph_l2o.evaluation.baselines import (
    Entry,
    Optimizers,
    baseline,
    check_grids,
    is_untuned,
    named_optimizers,
    ready,
    unknown,
)
from ph_l2o.evaluation.plots import to_png
from ph_l2o.evaluation.result_files import provenance
from ph_l2o.evaluation.suite_outcome import BASELINE, LEARNED, UNTUNED, SuiteOutcome, TaskOutcome
from ph_l2o.evaluation.suite_plots import plot_profile, plot_ratios, plot_suite_curves
from ph_l2o.evaluation.suite_ratios import HELD_OUT, SPEED, Draws, summarize_ratios, task_ratios, words
from ph_l2o.evaluation.suite_runs import Run, cached_run
from ph_l2o.evaluation.suite_speed import speed_ups
from ph_l2o.evaluation.suite_tables import plain_tables
from ph_l2o.evaluation.tuning import Tuned, tune
from ph_l2o.files import write_atomically
from ph_l2o.keys import ProblemKeys, Purpose
from ph_l2o.processes import Processes
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

    def plot(self, folder: str | Path) -> tuple[Path, ...]:
        """Write `suite_curves.png`, `suite_ratios.png` and `suite_profile.png`.

        They are learning curves on each task, bars of the ratios, and a performance profile.
        """
        figures = {"curves": plot_suite_curves, "ratios": plot_ratios, "profile": plot_profile}
        return tuple(
            write_atomically(Path(folder) / f"suite_{name}.png", to_png(plot(self))) for name, plot in figures.items()
        )

    def __str__(self) -> str:
        return plain_tables(self)


def compare_suite(
    optimizers: Optimizers,
    suite: Mapping[str, SuiteTask | tuple[Task, int]],
    seed: int = 0,
    *,
    reference: str = REFERENCE,
    num_problems: int = 5,
    tuning_problems: int = 2,
    grids: Mapping[str, Mapping[str, Iterable[float]]] | None = None,
    cache_dir: str | Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    chunk: int | None = None,
    name: str = "suite",
    after_task: Callable[[SuiteComparison], None] | None = None,
    processes: Processes | None = None,
) -> SuiteComparison:
    """Run optimizers on the same test problems of each task of a suite.

    A baseline's name stands for one that is tuned on each task's validation split, at the task's horizon: by `tune`,
    but over the learning rate alone, seven of the class's own to begin with, which are widened while the best one is at
    an edge, and then refined. An optimizer's loss on a task is the mean over problems of the mean over the last tenth
    of its steps. A ratio is loss(reference) / loss(optimizer): above 1 is better than the reference. It is 0 where the
    optimizer diverged on any problem; a reference that diverged counts with the start's loss at most. There are those
    to `reference`, to the best tuned baseline and to the best one that is not tuned (`adamw+cosine+untuned`), and to
    `reference` that of the held-out losses, where the task has one, and the speed-up in steps (`speed_ups`). Intervals
    are 95 % percentile bootstrap intervals over problems; in each resample the best baseline is chosen anew.

    Args:
        optimizers: As for `compare`.
        suite: Tasks and their horizons by name.
        seed: Seed of the problems, >= 0.
        reference: A tuned baseline's name; if it is not among `optimizers`, what is to it is left out.
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
        processes: That share out each optimizer on each task, and change no result; None: they run here, one by one.

    Raises:
        ValueError: If an argument is out of range, a name is unknown, or a task's losses can be negative.
    """
    seed = at_least("seed", seed, 0, "seed of the problems")
    num_problems = at_least("num_problems", num_problems, 2, "test problems of each task")
    tuning_problems = at_least("tuning_problems", tuning_problems, 2, "validation problems of each task")
    named = named_optimizers(optimizers)
    entries = _checked(suite)
    check_grids(grids)
    check_reference(reference)
    sizes = {"seed": seed, "num_problems": num_problems, "tuning_problems": tuning_problems}
    settings = {
        **sizes,
        "reference": reference,
        "optimizers": list(named),
        "tasks": {n: {"horizon": e.horizon, **e.task.spec()} for n, e in entries.items()},
        **provenance(),
    }
    how = {"cache_dir": cache_dir, "device": device, "dtype": dtype, "chunk": chunk}
    outcomes: dict[str, TaskOutcome] = {}
    draws: dict[str, Draws] = {}
    roles = {n: _role(o) for n, o in named.items()}
    made = SuiteComparison(name, {}, len(entries), roles, {}, settings)

    start = functools.partial if processes is None else processes.start
    runs = {
        key: {n: start(_run, key, n, o, entry, grids or {}, **sizes, **how) for n, o in named.items()}
        for key, entry in entries.items()
    }
    for number, (key, entry) in enumerate(entries.items()):
        found = {n: run() for n, run in runs[key].items()}
        keys = ProblemKeys(seed, "test", number, ())
        outcomes[key], draws[key] = _judged(found, roles, entry.horizon, reference, keys)
        summary = summarize_ratios({k: o.ratios for k, o in outcomes.items()}, draws)
        made = SuiteComparison(name, dict(outcomes), len(entries), roles, summary, settings)
        _LOG.info("%s (%d of %d): %s", key, number + 1, len(entries), _in_words(outcomes[key], roles))
        if after_task is not None:
            after_task(made)
    return made


def check_reference(name: str) -> None:
    """Raise ValueError where it is not the name of a baseline that is tuned."""
    if problem := unknown(name) or ("must be a baseline that is tuned" if is_untuned(name) else None):
        raise ValueError(f"reference={name}: {problem}")


def _role(optimizer: Entry) -> str:
    return UNTUNED if is_untuned(optimizer) else BASELINE if isinstance(optimizer, str) else LEARNED


def _run(
    task: str, label: str, optimizer: Entry, entry: SuiteTask, grids: Mapping[str, Mapping[str, Iterable[float]]], *,
    seed: int, num_problems: int, tuning_problems: int, cache_dir: str | Path | None, **how: Any,
) -> tuple[Run, Tuned | None]:  # fmt: skip
    """An optimizer's run on a task, after tuning where it is to be tuned."""
    tuned, runs = None, ready(optimizer, entry.horizon)
    if runs is None:
        assert isinstance(optimizer, str)
        tuned = tune(
            optimizer, entry.task, horizon=entry.horizon, num_problems=tuning_problems, seed=seed,
            grid=grids.get(optimizer) or rates(optimizer), cache_dir=cache_dir, **how,
        )  # fmt: skip
        runs = tuned.optimizer
    run = cached_run(
        runs, *entry, num_problems=num_problems, seed=seed, cache_dir=cache_dir and Path(cache_dir) / "suite",
        label=f"{task}-{label}", **how,
    )  # fmt: skip
    return run, tuned


def _judged(
    found: Mapping[str, tuple[Run, Tuned | None]], roles: Mapping[str, str], horizon: int, reference: str,
    keys: ProblemKeys,
) -> tuple[TaskOutcome, Draws]:  # fmt: skip
    """All ratios on a task; every one of them is over the same resamples of problems."""
    runs = {n: run for n, (run, _) in found.items()}
    tuned = {n: t for n, (_, t) in found.items() if t is not None}

    def resampled() -> np.random.Generator:
        return keys.episode_generator(Purpose.BOOTSTRAP)

    references, others = ({n: r.as_reference for n, r in runs.items() if roles[n] == k} for k in (BASELINE, UNTUNED))
    judged = {n: r.judged for n, r in runs.items()}
    best, ratios, draws = task_ratios(judged, references, reference, resampled(), others)
    steps: dict[str, int | None] = {}
    if reference in tuned:
        held_out = {n: r.held_out_judged for n, r in runs.items() if r.held_out_judged is not None}
        theirs = runs[reference].held_out_as_reference
        if theirs is not None:
            _, by_name, points = task_ratios(held_out, {reference: theirs}, reference, resampled())
            for n in runs:
                ratios[n][HELD_OUT], draws[n][HELD_OUT] = by_name[n][reference], points[n][reference]
        for n, speed in speed_ups(runs, reference, horizon, {n: resampled() for n in runs}).items():
            ratios[n][SPEED], draws[n][SPEED], steps[n] = speed
    return TaskOutcome(horizon, runs, tuned, best, ratios, steps), draws


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
    learned = [n for n, kind in roles.items() if kind == LEARNED]
    ratios = [f"{n} {r.value:.3g} {words(k)}" for n in learned for k, r in outcome.ratios[n].items()]
    return f"loss {losses}" + (f"; ratio {', '.join(ratios)}" if ratios else "")
