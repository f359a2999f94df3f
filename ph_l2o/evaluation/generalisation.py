"""Training against test: does what an optimizer finds generalise better, at equal steps and at equal training loss?"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ph_l2o.checks import at_least
from ph_l2o.evaluation import estimates as stats
from ph_l2o.evaluation.baselines import Entry, Optimizers, named_optimizers, ready
from ph_l2o.evaluation.generalisation_rows import Row, estimates_row, flat, identity, line
from ph_l2o.evaluation.generalisation_runs import Measures, Plan, Trace, follow, stopped
from ph_l2o.evaluation.result_files import ResultFiles, provenance
from ph_l2o.evaluation.tuning import Tuned, default_num_problems, tune
from ph_l2o.keys import SPLITS, Split
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.tasks.task import Task

EQUAL_STEPS, EQUAL_LOSS = "equal_steps", "equal_loss"
_Group = tuple[str, float | None, dict[str, tuple[stats.Array, Measures]]]
_POINTS = 50  # steps at which the training loss is measured, where nothing else is said


@dataclass(frozen=True, eq=False)
class Generalisation(ResultFiles):
    """The outcome of `measure_generalisation`.

    Attributes:
        task: Name of the task.
        horizon: Inner steps.
        num_problems: Problems P.
        seed: Seed of the problems.
        config: How it was made.
        best_baseline: The tuned baseline with the lowest criterion on the validation problems; None if none was tuned.
        steps: At which the training loss was measured, `(E,)`.
        levels: Training loss at which the optimizers are compared, by row of `equal_loss`: of each problem, `(L, P)`.
        rows: For each optimizer one row at equal steps, and one for each level. `train_loss`, `test_loss`, `accuracy`,
            `gap` (test less training loss) and `sharpness` have `mean`, `median` and `ci95` of the mean over the
            `problems` that were reached, None where there is none; `differences_to_best_baseline` the same of paired
            differences, `sharpness_ratio_to_best_baseline` the geometric mean of ratios. `values` has the numbers of
            every problem, `step` too, null where the level was not reached. `diverged` counts training losses at the
            end that are not finite or above the start's, `sharpness_not_converged` eigenvalues that are lower bounds.
        curves: Quartiles over problems of the training loss at `steps`, by optimizer.
        made_with: Revision of the code, and versions.
    """

    task: str
    horizon: int
    num_problems: int
    seed: int
    config: dict[str, Any]
    best_baseline: str | None
    steps: stats.Array
    levels: stats.Array
    rows: list[Row]
    curves: dict[str, stats.Curve]
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
            "steps": self.steps.tolist(),
            "levels": self.levels.tolist(),
            "rows": self.rows,
            "curves": {n: {k: x.tolist() for k, x in c._asdict().items()} for n, c in self.curves.items()},
        }

    def flat_rows(self) -> list[dict[str, Any]]:
        """See `ResultFiles`."""
        return list(map(flat, self.rows))

    def __str__(self) -> str:
        head = f"{self.task}: {self.horizon} steps, {self.num_problems} problems; means; against {self.best_baseline}"
        return "\n".join([head, *map(line, self.rows)])


def measure_generalisation(
    optimizers: Optimizers,
    task: Task,
    horizon: int = 500,
    num_problems: int = 16,
    seed: int = 0,
    *,
    levels: Sequence[float] | None = None,
    every: int | None = None,
    sample: int = 5000,
    sharpness_sample: int = 1000,
    sharpness_iterations: int = 60,
    tuning_problems: int | None = None,
    split: Split = "test",
    cache_dir: str | Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    chunk: int | None = None,
    config: Mapping[str, Any] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Generalisation:
    """Run optimizers on the same problems, and compare training loss, test loss, accuracy and sharpness.

    At equal steps all are measured at the horizon. At equal training loss each is measured on each problem at the first
    of the measured steps at which its training loss is at the level or below; the run is repeated up to there. Training
    losses are those of a fixed sample (`Problem.training_sample`), of a small training set all of it, in evaluation
    mode, as test metrics are; so is the Hessian of the sharpness. Baselines' names are tuned on validation problems, by
    the training loss, as in `compare`.

    Args:
        optimizers: As for `compare`.
        task: The task; its problems must have a held-out loss.
        horizon: Inner steps, >= 1.
        num_problems: Problems, >= 2.
        seed: Seed of the problems, >= 0.
        levels: Training losses at which optimizers are compared. None: one level for each problem, the highest of what
            the optimizers that did not diverge on it reached as their lowest, so that all of these reach it.
        every: Steps between measurements of the training loss, >= 1; None: a fiftieth of the horizon.
        sample: Most examples of which the training loss is measured, >= 1.
        sharpness_sample: Most examples of the Hessian, >= 0; 0: no sharpness.
        sharpness_iterations: Most products with the Hessian, >= 1.
        tuning_problems: Validation problems for tuning, >= 2; None: `default_num_problems`.
        split: Of the problems that are compared.
        cache_dir: Folder in which results of tuning are kept; None: they are not.
        device: Where to run.
        dtype: Floating-point type of the parameters.
        chunk: Problems that run at once, >= 1; None: chosen by their size.
        config: What the JSON file says of how it was made; None: the arguments.
        progress: Called with what was done last ("adam: tuned"), how many such parts are done, and of how many.

    Raises:
        ValueError: If an argument is out of range, a name is unknown, or the task has no held-out loss.
    """
    plan = _checked_plan(
        task, horizon, num_problems, seed, split, every, sample, sharpness_sample, sharpness_iterations, device, dtype,
        chunk,
    )  # fmt: skip
    _check_levels(levels)
    if tuning_problems is not None:
        at_least("tuning_problems", tuning_problems, 2, "validation problems")
    named = named_optimizers(optimizers)
    tell = _teller(progress, 3 * len(named))

    runs: dict[str, LearnedOptimizer] = {}
    tuned: dict[str, Tuned] = {}
    for name, optimizer in named.items():
        runs[name], found = _made(optimizer, plan, tuning_problems, cache_dir)
        tuned |= {} if found is None else {name: found}
        tell(f"{name}: ready")
    traces: dict[str, Trace] = {}
    for name, optimizer in runs.items():
        traces[name] = follow(optimizer, plan)
        tell(f"{name}: at equal steps")
    heights = _own_levels(traces) if levels is None else np.repeat(np.array(levels)[:, None], plan.num_problems, 1)
    end = np.full(plan.num_problems, float(plan.horizon))
    groups: list[_Group] = [(EQUAL_STEPS, None, {name: (end, trace.at_end) for name, trace in traces.items()})]
    groups += [(EQUAL_LOSS, float(np.median(level)), {}) for level in heights]
    for name, optimizer in runs.items():
        stops = [traces[name].first_at(level) for level in heights]
        for (_, _, group), stop, found in zip(groups[1:], stops, stopped(optimizer, plan, stops), strict=True):
            group[name] = np.where(stop < 0, np.nan, plan.steps[stop]), found
        tell(f"{name}: at equal loss")

    best = min(tuned, key=lambda name: min(row["criterion"] for row in tuned[name].table), default=None)
    rows = [
        {
            "optimizer": name, **identity(runs[name], tuned.get(name)), "at": at, "level": level,
            **estimates_row(step, measures, None if best is None else group[best][1], plan.seed),
            "diverged": int(traces[name].diverged.sum()),
        }
        for at, level, group in groups for name, (step, measures) in group.items()
    ]  # fmt: skip
    arguments = {
        "task": task.spec(), "split": split, "every": plan.every, "sample": sample,
        "sharpness_sample": sharpness_sample, "levels": None if levels is None else list(levels),
        "tuning_problems": {name: found.num_problems for name, found in tuned.items()},
        "device": str(device), "dtype": str(dtype).removeprefix("torch."),
    }  # fmt: skip
    return Generalisation(
        task.name, plan.horizon, plan.num_problems, plan.seed, dict(arguments if config is None else config), best,
        plan.steps, heights, rows, {name: stats.curve(trace.training) for name, trace in traces.items()},
    )  # fmt: skip


def _checked_plan(
    task: Task, horizon: int, num_problems: int, seed: int, split: Split, every: int | None, sample: int,
    sharpness_sample: int, sharpness_iterations: int, device: torch.device | str, dtype: torch.dtype,
    chunk: int | None,
) -> Plan:  # fmt: skip
    horizon = at_least("horizon", horizon, 1, "inner steps")
    if split not in SPLITS:
        raise ValueError(f"split={split}: must be one of {', '.join(SPLITS)}")
    return Plan(
        task, horizon, at_least("num_problems", num_problems, 2, "problems"),
        at_least("seed", seed, 0, "seed of the problems"), split,
        max(1, horizon // _POINTS) if every is None else at_least("every", every, 1, "steps"),
        at_least("sample", sample, 1, "examples of the training loss"),
        at_least("sharpness_sample", sharpness_sample, 0, "examples of the Hessian; 0: no sharpness"),
        at_least("sharpness_iterations", sharpness_iterations, 1, "products with the Hessian"), device, dtype,
        None if chunk is None else at_least("chunk", chunk, 1, "problems at once"),
    )  # fmt: skip


def _teller(progress: Callable[[str, int, int], None] | None, parts: int) -> Callable[[str], None]:
    done = itertools.count(1)
    return (lambda what: None) if progress is None else lambda what: progress(what, next(done), parts)


def _made(
    entry: Entry, plan: Plan, tuning_problems: int | None, cache_dir: str | Path | None
) -> tuple[LearnedOptimizer, Tuned | None]:
    made = ready(entry, plan.horizon)
    if made is not None:
        return made, None
    assert isinstance(entry, str)
    count = default_num_problems(plan.task, plan.num_problems) if tuning_problems is None else tuning_problems
    tuned = tune(
        entry, plan.task, horizon=plan.horizon, num_problems=count, seed=plan.seed, cache_dir=cache_dir,
        device=plan.device, dtype=plan.dtype, chunk=plan.chunk,
    )  # fmt: skip
    return tuned.optimizer, tuned


def _check_levels(levels: Sequence[float] | None) -> None:
    if levels is None:
        return
    if not len(levels) or not all(isinstance(level, int | float) and np.isfinite(level) for level in levels):
        raise ValueError(f"levels={list(levels)}: must be one or more finite training losses, or None")


def _own_levels(traces: Mapping[str, Trace]) -> stats.Array:
    """One row: of each problem, the highest of the lowest training losses of those that did not diverge on it."""
    lowest = [np.where(trace.diverged, -np.inf, trace.training.min(0)) for trace in traces.values()]
    return np.max(lowest, axis=0)[None]
