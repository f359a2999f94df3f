"""Estimates of rows, and of contrasts between them, with 95 % intervals over problems, or over seeds.

A row has the values of S trainings on P problems, `(S, P)`. With one training, intervals are percentile bootstrap
intervals over problems. With more, they are Student's over the trainings' own means: they say what another training
would bring, which problems alone cannot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ph_l2o.claims.spec import Contrast
from ph_l2o.errors import ConfigError
from ph_l2o.evaluation import estimates as stats
from ph_l2o.evaluation.estimates import Array
from ph_l2o.keys import ProblemKeys, Purpose

# 97.5 % quantiles of Student's t, by degrees of freedom; beyond, that of the last one, which is a little too wide.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)

Values = Mapping[str, Mapping[str, Array]]  # by row and measure, `(S, P)`
Estimate = dict[str, Any]


def mean_estimate(values: Array) -> Estimate:
    """Mean of `(S, P)` with its interval."""
    low, high = _interval(values)
    return {"value": stats.mean(values), "ci95": [low, high]}


def median_estimate(values: Array) -> Estimate:
    """Median over all of `(S, P)`, with the interval of order statistics that the binomial distribution gives.

    With several trainings it is Student's over the trainings' medians.
    """
    if len(values) > 1:
        medians = np.median(values, axis=1)
        low, high = _student(medians)
        return {"value": float(np.median(values)), "ci95": [low, high]}
    ordered, n = np.sort(values[0]), values.shape[1]
    reach = 0.98 * math.sqrt(n)  # 1.96 · √n / 2
    low, high = max(0, math.floor((n - 1) / 2 - reach)), min(n - 1, math.ceil((n - 1) / 2 + reach))
    return {"value": float(np.median(values)), "ci95": [float(ordered[low]), float(ordered[high])]}


def difference(values: Array, others: Array) -> Estimate:
    """Mean of paired differences; `others` has as many trainings, which are paired too, or one."""
    return mean_estimate(stats.paired_difference(values, np.broadcast_to(others, _shape(values, others))))


def ratio(values: Array, others: Array) -> Estimate:
    """Geometric mean of paired ratios, of values clamped at 1e-12."""
    shape = _shape(values, others)
    logs = stats.paired_difference(
        stats.log_losses(np.broadcast_to(values, shape)), stats.log_losses(np.broadcast_to(others, shape))
    )
    found = mean_estimate(logs)
    return {"value": _exp(found["value"]), "ci95": [_exp(end) for end in found["ci95"]]}


def contrast_result(contrast: Contrast, values: Values, measure: str) -> dict[str, Any]:
    """A contrast with its estimates, each with the number that it is compared with, and the row that it is against.

    Raises:
        ConfigError: If a row has no such measure.
    """
    measure = contrast.measure or measure
    for row in (contrast.row, *(contrast.against if isinstance(contrast.against, tuple) else ())):
        if measure not in values[row]:
            known = ", ".join(values[row])
            raise ConfigError(f"contrasts[…].measure={measure}: {row} has no such measure; there are {known}")
    own = values[contrast.row][measure]
    found: dict[str, Any] = {
        "says": contrast.says, "measurement": contrast.measurement, "row": contrast.row, "side": contrast.side,
        "recipe": contrast.recipe, "measure": measure, "headline": contrast.headline,
    }  # fmt: skip
    if isinstance(contrast.against, float):
        single = {"mean": mean_estimate, "median": median_estimate, "geometric_mean": _geometric}
        found["against"] = None
        found["estimates"] = [{"of": s, **single[s](own), "threshold": contrast.against} for s in contrast.of]
        return found
    best = _best(contrast, {name: values[name][measure] for name in contrast.against})
    other = values[best][measure]
    found["against"], found["estimates"] = best, []
    for statistic in contrast.of:
        if statistic == "geometric_mean":
            found["estimates"].append({"of": statistic, **ratio(own, other), "threshold": 1.0})
        elif statistic == "mean":
            found["estimates"].append({"of": statistic, **difference(own, other), "threshold": 0.0})
        else:
            found["estimates"].append({"of": statistic, **_median_difference(own, other), "threshold": 0.0})
    return found


def _best(contrast: Contrast, others: Mapping[str, Array]) -> str:
    """Of several rows the best one by its mean on the test problems: a choice in its favour."""
    sign = 1 if contrast.side == "below" else -1
    return min(others, key=lambda name: (sign * stats.mean(others[name]), sign * float(np.median(others[name]))))


def _median_difference(values: Array, others: Array) -> Estimate:
    return median_estimate(stats.paired_difference(values, np.broadcast_to(others, _shape(values, others))))


def _geometric(values: Array) -> Estimate:
    return ratio(values, np.ones((1, values.shape[1])))


def _shape(values: Array, others: Array) -> tuple[int, ...]:
    if len(values) != len(others) and 1 not in (len(values), len(others)):
        raise ConfigError(f"contrasts: rows of {len(values)} and of {len(others)} trainings cannot be paired")
    return np.broadcast_shapes(values.shape, others.shape)


def _interval(values: Array) -> tuple[float, float]:
    if len(values) > 1:
        return _student(np.array([stats.mean(row) for row in values]))
    generator = ProblemKeys(0, "test", 0, ()).episode_generator(Purpose.BOOTSTRAP)
    return stats.percentile_interval(stats.bootstrap_means(values[0], generator)[:, 0])


def _student(means: Array) -> tuple[float, float]:
    """Of means that can be infinite: then the interval is unbounded on that side."""
    if not np.isfinite(means).all():
        low = -math.inf if np.isneginf(means).any() else float(means.min())
        return low, math.inf if np.isposinf(means).any() else float(means.max())
    degrees = len(means) - 1
    reach = _STUDENT[min(degrees, len(_STUDENT)) - 1] * float(means.std(ddof=1)) / math.sqrt(len(means))
    return float(means.mean()) - reach, float(means.mean()) + reach


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf if not math.isnan(value) else math.nan


def spread_of_means(values: Sequence[float] | Array, size: int = 100) -> float:
    """Standard deviation of a mean over `size` problems."""
    with np.errstate(invalid="ignore"):
        return float(np.std(np.asarray(values, dtype=np.float64), ddof=1) / math.sqrt(size))
