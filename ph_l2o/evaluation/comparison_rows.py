"""The rows of a comparison: estimates over problems, and paired differences between optimizers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from ph_l2o.evaluation import estimates as stats
from ph_l2o.evaluation.baselines import hyperparameters_of, schedule_of
from ph_l2o.evaluation.runner import Result
from ph_l2o.evaluation.tuning import Tuned
from ph_l2o.keys import ProblemKeys, Purpose
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer

Row = dict[str, Any]

MEASURES = ("final", "last10", "all")  # of a problem: final loss, mean of the last 10, mean over all steps


class Outcome(NamedTuple):
    """What is kept of an optimizer's run: not the losses of all steps, which can be many.

    `hyperparameters` are those of a classical optimizer, `schedule` is the name of its schedule, if it has one.
    """

    hyperparameters: dict[str, float] | None
    schedule: str | None
    tuned: Tuned | None
    final: stats.Array
    last10: stats.Array
    all: stats.Array
    diverged: int
    metrics: dict[str, float]
    step_seconds: float
    curve: stats.Curve

    @classmethod
    def of(cls, optimizer: LearnedOptimizer, tuned: Tuned | None, result: Result) -> Self:
        """What is kept of a result."""
        return cls(
            hyperparameters_of(optimizer),
            schedule_of(optimizer),
            tuned,
            result.final,
            result.last10,
            result.all,
            int(result.diverged.sum()),
            {name: stats.mean(values) for name, values in result.metrics.items()},
            result.step_seconds,
            stats.curve(result.losses),
        )


def comparison_rows(
    outcomes: Mapping[str, Outcome], *, seed: int, can_be_negative: bool
) -> tuple[list[Row], str | None]:
    """One row for each optimizer, and the tuned baseline with the lowest mean of the final loss."""
    summaries = {n: stats.summarize(o.final, can_be_negative=can_be_negative) for n, o in outcomes.items()}
    tuned = [name for name, outcome in outcomes.items() if outcome.tuned is not None]
    best = min(tuned, key=lambda n: (summaries[n].mean, summaries[n].median), default=None)
    columns: dict[tuple[str, str], stats.Array] = {}
    for name, outcome in outcomes.items():
        columns[name, "final"] = outcome.final
        if best is not None:
            reference = outcomes[best].final
            columns[name, "difference"] = stats.paired_difference(outcome.final, reference)
            if not can_be_negative:
                logs = stats.paired_difference(stats.log_losses(outcome.final), stats.log_losses(reference))
                columns[name, "log_ratio"] = logs
        if outcome.tuned is None:
            for baseline in tuned:
                for what in MEASURES:
                    pair = getattr(outcome, what), getattr(outcomes[baseline], what)
                    columns[name, f"{baseline}/{what}"] = stats.paired_difference(*pair)
    generator = ProblemKeys(seed, "test", 0, ()).episode_generator(Purpose.BOOTSTRAP)
    resampled = stats.bootstrap_means(np.stack(list(columns.values()), axis=1), generator)
    estimates = {
        key: (stats.mean(column), stats.percentile_interval(samples))
        for (key, column), samples in zip(columns.items(), resampled.T, strict=True)
    }
    return [_row(name, o, summaries[name], estimates, tuned) for name, o in outcomes.items()], best


def _row(
    name: str,
    outcome: Outcome,
    summary: stats.Summary,
    estimates: Mapping[tuple[str, str], tuple[float, stats.Interval]],
    baselines: Sequence[str],
) -> Row:
    tuned, schedule = outcome.tuned, outcome.schedule
    values = None if outcome.hyperparameters is None else dict(outcome.hyperparameters)
    if schedule is not None and values is not None:
        values.pop("schedule", None)  # its number
    if tuned is not None and values is not None:
        values |= tuned.hyperparameters  # not rounded to the optimizer's type
    difference = estimates.get((name, "difference"))
    ratio = estimates.get((name, "log_ratio"))
    paired = None
    if tuned is None:
        paired = {b: {what: _estimate(estimates[name, f"{b}/{what}"]) for what in MEASURES} for b in baselines}
    return {
        "optimizer": name,
        "kind": "learned" if values is None else "classical" if tuned is None else "baseline",
        "learning_rate": None if values is None else values.get("lr"),
        "schedule": schedule,
        "final": {**summary._asdict(), "ci95": list(estimates[name, "final"][1])},
        "last10_mean": stats.mean(outcome.last10),
        "all_mean": stats.mean(outcome.all),
        "diverged": outcome.diverged,
        "accuracy": None,
        "test_loss": None,
        **outcome.metrics,
        "difference_to_best_baseline": difference and _estimate(difference),
        "ratio_to_best_baseline": ratio and {"geometric_mean": _exp(ratio[0]), "ci95": [_exp(end) for end in ratio[1]]},
        "paired_differences": paired or None,
        "step_seconds": outcome.step_seconds,
        "hyperparameters": values,
        "grid": tuned and {k: list(v) for k, v in tuned.grid.items()},
        "grid_widened": tuned and tuned.widened,
        "tuning": tuned and tuned.table,
    }


def _estimate(estimate: tuple[float, stats.Interval]) -> dict[str, Any]:
    return {"mean": estimate[0], "ci95": list(estimate[1])}


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf if not math.isnan(value) else math.nan


def flat_row(row: Row) -> dict[str, Any]:
    """A row without nesting; intervals become two columns, and what is not a number JSON."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if key in ("tuning", "paired_differences"):
            continue
        if key in ("hyperparameters", "grid"):
            flat[key] = None if value is None else json.dumps(value)
        elif key == "final" or key.endswith("_to_best_baseline"):
            for inner, number in (value or {}).items():
                if inner == "ci95":
                    flat[f"{key}_low"], flat[f"{key}_high"] = number
                else:
                    flat[f"{key}_{inner}"] = number
        else:
            flat[key] = value
    return flat
