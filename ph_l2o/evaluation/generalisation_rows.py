"""The rows of a measurement of generalisation: estimates over problems, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ph_l2o.evaluation import estimates as stats
from ph_l2o.evaluation.baselines import hyperparameters_of, schedule_of
from ph_l2o.evaluation.generalisation_runs import NAMES, Measures
from ph_l2o.evaluation.tuning import Tuned
from ph_l2o.keys import ProblemKeys, Purpose
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer

Row = dict[str, Any]

MEASURES = NAMES[:-1]  # without whether the sharpness converged


def identity(optimizer: LearnedOptimizer, tuned: Tuned | None) -> Row:
    """What is known of an optimizer."""
    values = hyperparameters_of(optimizer)
    if values is not None and tuned is not None:
        values |= tuned.hyperparameters
    kind = "learned" if values is None else "classical" if tuned is None else "baseline"
    return {"kind": kind, "hyperparameters": values, "schedule": schedule_of(optimizer)}


def estimates_row(step: stats.Array, measures: Measures, reference: Measures | None, seed: int) -> Row:
    """Estimates of what was measured after these steps, nan where it was not, and differences to a reference."""
    reached = np.isfinite(step)
    converged = measures["sharpness_converged"]
    row: Row = {"problems": int(reached.sum()), "step": _estimate(step, seed)}
    row |= {name: _estimate(measures[name], seed) for name in MEASURES}
    row["sharpness_not_converged"] = int((converged == 0).sum())
    differences = ratio = None
    if reference is not None:
        pairs = {name: stats.paired_difference(measures[name], reference[name]) for name in MEASURES}
        differences = {name: _estimate(pair, seed) for name, pair in pairs.items()}
        ours, theirs = (np.where(m["sharpness"] > 0, m["sharpness"], np.nan) for m in (measures, reference))
        logs = _estimate(np.log(ours / theirs), seed)
        if logs is not None:
            ci95 = [float(np.exp(end)) for end in logs["ci95"]]
            ratio = {"geometric_mean": float(np.exp(logs["mean"])), "ci95": ci95, "problems": logs["problems"]}
    values = {"step": step, **measures}
    return row | {
        "differences_to_best_baseline": differences,
        "sharpness_ratio_to_best_baseline": ratio,
        "values": {name: x.tolist() for name, x in values.items()},
    }


def flat(row: Row) -> Row:
    """A row without nesting; intervals become two columns."""
    plain = {k: v for k, v in row.items() if not isinstance(v, dict)}
    for name in ("step", *MEASURES):
        plain |= _flattened(name, row[name])
    for name, difference in (row["differences_to_best_baseline"] or {}).items():
        plain |= _flattened(f"{name}_difference", difference)
    return plain | _flattened("sharpness_ratio", row["sharpness_ratio_to_best_baseline"])


def _estimate(values: stats.Array, seed: int) -> dict[str, Any] | None:
    """Of the values that are there; None if there are none."""
    there = values[~np.isnan(values)]
    if not len(there):
        return None
    generator = ProblemKeys(seed, "test", 0, ()).episode_generator(Purpose.BOOTSTRAP)
    interval = stats.percentile_interval(stats.bootstrap_means(there, generator)[:, 0])
    median = float(np.median(there))
    return {"mean": stats.mean(there), "median": median, "ci95": list(interval), "problems": len(there)}


def _flattened(name: str, estimate: Mapping[str, Any] | None) -> dict[str, Any]:
    if estimate is None:
        return {}
    plain = {f"{name}_{k}": v for k, v in estimate.items() if k not in ("ci95", "problems")}
    return plain | {f"{name}_low": estimate["ci95"][0], f"{name}_high": estimate["ci95"][1]}


def line(row: Row) -> str:
    """A row in words."""
    where = row["at"] if row["level"] is None else f"{row['at']} {row['level']:.3g}"
    texts = [f"{row['optimizer']:28} {where:18} n={row['problems']}"]
    texts += [f"{name} {row[name]['mean']:.4g}" for name in ("step", *MEASURES) if row[name] is not None]
    difference = (row["differences_to_best_baseline"] or {}).get("test_loss")
    if difference is not None:
        low, high = difference["ci95"]
        texts.append(f"test_loss difference {difference['mean']:+.3g} [{low:+.3g}, {high:+.3g}]")
    return ", ".join(texts)
