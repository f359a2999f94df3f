"""Estimates of rows, and of contrasts between them, with 95 % intervals over problems, or over seeds.

A row has the values of S trainings on P problems, `(S, P)`. With one training, intervals are percentile bootstrap
intervals over problems, of a share Wilson's. With more trainings, they say what other problems and another training
would bring: their ends lie √(a² + b²) from the value, where a is that of the bootstrap over problems of means over
trainings, and b of Student's t over the trainings' own values.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ph_l2o.claims.kinds import SHARES
from ph_l2o.claims.spec import SLOPE, Contrast
from ph_l2o.errors import ConfigError
from ph_l2o.evaluation import estimates as stats
from ph_l2o.evaluation.escapes import wilson
from ph_l2o.evaluation.estimates import Array
from ph_l2o.keys import ProblemKeys, Purpose

# 97.5 % quantiles of Student's t, by degrees of freedom; beyond, that of the last one, which is a little too wide.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)

Values = Mapping[str, Mapping[str, Array]]  # by row and measure, `(S, P)`
Estimate = dict[str, Any]


def mean_estimate(values: Array, *, is_share: bool = False) -> Estimate:
    """Mean of `(S, P)` with its interval; of a share Wilson's, as the bootstrap knows nothing of it at 0 and 1."""
    if is_share and len(values) == 1:
        return {"value": stats.mean(values), "ci95": list(wilson(int(values.sum()), values.size))}
    resampled = stats.bootstrap_means(_over_trainings(values), _generator())[:, 0]
    return _estimate(stats.mean(values), resampled, np.array([stats.mean(row) for row in values]))


def median_estimate(values: Array) -> Estimate:
    """Median over problems of the mean over trainings of `(S, P)`."""
    row = _over_trainings(values)
    resampled = _medians(row[_resamples(len(row))])
    return _estimate(float(np.median(row)), resampled, np.median(values, axis=1))


def _over_trainings(values: Array) -> Array:
    with np.errstate(invalid="ignore", over="ignore"):
        return values.mean(axis=0)


def slope_estimate(columns: Mapping[float, Array]) -> Estimate:
    """Least-squares slope of log median against log x, of values of one training by x; the same problems at each x.

    It is +∞ where a median is: what never ends grows faster than any power.
    """
    weights = stats.slope_weights(np.log(list(columns)))
    rows = [_over_trainings(values) for values in columns.values()]
    resamples = _resamples(min(map(len, rows)))
    with np.errstate(invalid="ignore", divide="ignore"):
        resampled = weights @ np.log(np.stack([_medians(row[resamples]) for row in rows]))
        value = float(weights @ np.log([np.median(row) for row in rows]))
    if not all(math.isfinite(np.median(row)) for row in rows):
        return {"value": math.inf, "ci95": [math.inf, math.inf]}
    return {"value": value, "ci95": list(stats.percentile_interval(resampled))}


def difference(values: Array, others: Array) -> Estimate:
    """Mean of paired differences; `others` has as many trainings, which are paired too, or one; so may `values`."""
    return mean_estimate(stats.paired_difference(values, np.broadcast_to(others, _shape(values, others))))


def ratio(values: Array, others: Array) -> Estimate:
    """Geometric mean of paired ratios, of values clamped at 1e-12."""
    shape = _shape(values, others)
    logs = stats.paired_difference(
        stats.log_losses(np.broadcast_to(values, shape)), stats.log_losses(np.broadcast_to(others, shape))
    )
    found = mean_estimate(logs)
    return {"value": _exp(found["value"]), "ci95": [_exp(end) for end in found["ci95"]]}


def contrast_result(contrast: Contrast, values: Mapping[str, Values], measure: str) -> dict[str, Any]:
    """A contrast with its estimates, each with the number that it is compared with, and the row that it is against.

    Args:
        contrast: The contrast.
        values: By measurement.
        measure: Of its measurement.

    Raises:
        ConfigError: If a row has no such measure.
    """
    measure = contrast.measure or measure
    rows = values[contrast.measurement]
    for row in (contrast.row, *(contrast.against if isinstance(contrast.against, tuple) else ())):
        if measure not in rows[row]:
            raise ConfigError(
                f"contrasts[…].measure={measure}: {row} has no such measure; there are {', '.join(rows[row])}"
            )
    found: dict[str, Any] = {
        "says": contrast.says, "measurement": contrast.measurement, "row": contrast.row, "side": contrast.side,
        "recipe": contrast.recipe, "measure": measure, "headline": contrast.headline, "bar": contrast.bar,
        "ours": contrast.ours, "against": None,
    }  # fmt: skip
    own = rows[contrast.row][measure]
    if isinstance(contrast.against, int | float):
        by_x = {x: values[name][contrast.row][measure] for name, x in contrast.across.items()}
        single: dict[str, Any] = {"mean": mean_estimate, "median": median_estimate, "geometric_mean": _geometric}
        if measure in SHARES:
            single["mean"] = functools.partial(mean_estimate, is_share=True)
        estimates = {s: slope_estimate(by_x) if s == SLOPE else single[s](own) for s in contrast.of}
        found["estimates"] = [{"of": s, **e, "threshold": contrast.against} for s, e in estimates.items()]
        return found
    best = _best(contrast, {name: rows[name][measure] for name in contrast.against})
    other = rows[best][measure]
    paired = {"geometric_mean": (ratio, 1.0), "mean": (difference, 0.0), "median": (median_ratio, 1.0)}
    found["against"] = best
    found["estimates"] = [{"of": s, **paired[s][0](own, other), "threshold": paired[s][1]} for s in contrast.of]
    return found


def _best(contrast: Contrast, others: Mapping[str, Array]) -> str:
    """Of several rows the best one by its first statistic on the test problems: a choice in its favour."""
    sign = 1 if contrast.side == "below" else -1

    def place(name: str) -> tuple[float, float]:
        mean, median = sign * stats.mean(others[name]), sign * float(np.median(others[name]))
        return (median, mean) if contrast.of[0] == "median" else (mean, median)

    return min(others, key=place)


def median_ratio(values: Array, others: Array) -> Estimate:
    """Ratio of medians over the same problems; of two that are infinite, 1."""
    own, other = _over_trainings(values), _over_trainings(others)
    resamples = _resamples(len(own))
    medians = _medians(own[resamples]), _medians(other[resamples])
    with np.errstate(over="ignore"):
        logs = (np.log(np.maximum(m, stats.GEOMETRIC_FLOOR)) for m in medians)
        resampled = np.exp(stats.paired_difference(*logs))
    value = _quotient(np.median(own), np.median(other))
    return _estimate(value, resampled, np.array([_quotient(np.median(row), np.median(other)) for row in values]))


def _quotient(value: Any, other: Any) -> float:
    logs = (np.log(np.maximum(v, stats.GEOMETRIC_FLOOR)) for v in (value, other))
    return _exp(float(stats.paired_difference(*logs)))


def _geometric(values: Array) -> Estimate:
    return ratio(values, np.ones((1, values.shape[1])))


def _shape(values: Array, others: Array) -> tuple[int, ...]:
    if len(values) != len(others) and 1 not in (len(values), len(others)):
        raise ConfigError(f"contrasts: rows of {len(values)} and of {len(others)} trainings cannot be paired")
    return np.broadcast_shapes(values.shape, others.shape)


def _estimate(value: float, resampled: Array, by_training: Array) -> Estimate:
    """An estimate, with what resampling of problems gives, and of which trainings it is made."""
    low, high = stats.percentile_interval(resampled)
    if len(by_training) == 1:
        return {"value": value, "ci95": [low, high]}
    if not np.isfinite(by_training).all() or not math.isfinite(value):
        return {"value": value, "ci95": [min(low, float(by_training.min())), max(high, float(by_training.max()))]}
    count = len(by_training)
    reach = _STUDENT[min(count - 1, len(_STUDENT)) - 1] * float(by_training.std(ddof=1)) / math.sqrt(count)
    return {"value": value, "ci95": [value - math.hypot(value - low, reach), value + math.hypot(high - value, reach)]}


def _generator() -> np.random.Generator:
    return ProblemKeys(0, "test", 0, ()).episode_generator(Purpose.BOOTSTRAP)


@functools.cache
def _resamples(count: int) -> npt.NDArray[np.intp]:
    """Places of problems that are drawn with replacement, `(R, P)`, for all rows alike."""
    return _generator().integers(0, count, (stats.NUM_RESAMPLES, count))


def _medians(rows: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return np.median(rows, axis=1)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf if not math.isnan(value) else math.nan


def spread_of_means(values: Sequence[float] | Array, size: int = 100) -> float:
    """Standard deviation of a mean over `size` problems."""
    with np.errstate(invalid="ignore"):
        return float(np.std(np.asarray(values, dtype=np.float64), ddof=1) / math.sqrt(size))
