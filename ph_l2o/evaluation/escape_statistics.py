"""Statistics of steps to escape: shares, ratios of medians, and the slope against the curvature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ph_l2o.evaluation import estimates as stats
from ph_l2o.evaluation.escape_runs import quantile
from ph_l2o.keys import ProblemKeys, Purpose

_Z = 1.959963984540054  # of a normal interval of 95 %


def or_none(value: float) -> float | None:
    """The number, None where it is not finite."""
    return float(value) if math.isfinite(value) else None


def wilson(count: int, total: int) -> tuple[float, float]:
    """The interval of 95 % of a share of which `count` of `total` were seen (Wilson 1927)."""
    share, spread = count / total, _Z**2 / total
    middle, root = share + spread / 2, _Z * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return max((middle - root) / (1 + spread), 0.0), min((middle + root) / (1 + spread), 1.0)


def resampled(num_problems: int, seed: int) -> np.ndarray:
    """Problems drawn with replacement, `(R, P)`, for all optimizers and tasks alike."""
    generator = ProblemKeys(seed, "test", 0, ()).episode_generator(Purpose.BOOTSTRAP)
    return generator.integers(0, num_problems, (stats.NUM_RESAMPLES, num_problems), dtype=np.int32)


def _medians(steps: stats.Array, resamples: np.ndarray) -> stats.Array:
    last = max(math.ceil(0.5 * len(steps)), 1) - 1  # as `quantile`
    parts = np.array_split(resamples, 20)  # so that memory stays small
    return np.concatenate([np.partition(steps[part], last, axis=1)[:, last] for part in parts])


def ratios(
    row: dict[str, Any], rows: list[dict[str, Any]], steps: dict[tuple[str, str], stats.Array], resamples: np.ndarray
) -> dict[str, Any]:
    """The median over that of each tuned baseline on the same task."""
    ours, task = steps[row["optimizer"], row["task"]], row["task"]
    found: dict[str, Any] = {}
    for other in rows:
        if other["kind"] == "baseline" and other["task"] == task:
            theirs = steps[other["optimizer"], task]
            with np.errstate(invalid="ignore"):
                ratio = quantile(ours, 0.5) / quantile(theirs, 0.5)
                ends = stats.percentile_interval(_medians(ours, resamples) / _medians(theirs, resamples))
            found[other["optimizer"]] = {"median_ratio": or_none(ratio), "ci95": [or_none(x) for x in ends]}
    return found


def slope(
    name: str, gammas: Sequence[float], steps: dict[tuple[str, str], stats.Array], resamples: np.ndarray
) -> dict[str, Any]:
    """Least squares of log median steps against log 1/γ."""
    weights = stats.slope_weights(-np.log(gammas))
    columns = [steps[name, str(gamma)] for gamma in gammas]
    with np.errstate(invalid="ignore", divide="ignore"):
        found = float(weights @ np.log([quantile(column, 0.5) for column in columns]))
        ends = stats.percentile_interval(
            weights @ np.log(np.stack([_medians(column, resamples) for column in columns]))
        )
    if not all(np.isfinite(quantile(column, 0.5)) for column in columns):
        return {"optimizer": name, "slope": None, "ci95": [None, None]}
    return {"optimizer": name, "slope": found, "ci95": [or_none(x) for x in ends]}
