"""Location estimates over problems, bootstrap intervals, and paired differences.

Losses of diverged problems are infinite, and stay: a mean over them is infinite, a median need not be.
Nothing here warns. Undefined results (∞ - ∞ in a sum) are nan; where one occurs in a resample, it counts as
-∞ for the lower and as +∞ for the upper end of an interval.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Interval = tuple[float, float]

GEOMETRIC_FLOOR = 1e-12  # losses are clamped here before the logarithm
NUM_RESAMPLES = 2000
_MAX_COUNTS = 2**21  # counts of resampled problems held at once: 16 MiB


class Curve(NamedTuple):
    """Losses of an optimizer over an episode: quartiles over problems of loss_0 … loss_T, each `(T + 1,)`."""

    median: Array
    low: Array
    high: Array


def curve(losses: Array) -> Curve:
    """The quartiles of losses `(T + 1, P)`; quartiles are order statistics, so some may be infinite."""
    ordered = np.sort(losses, axis=1)
    last = ordered.shape[1] - 1
    return Curve(np.median(ordered, axis=1), ordered[:, last // 4], ordered[:, last - last // 4])


class Summary(NamedTuple):
    """Location of a sample of losses.

    Attributes:
        mean: Arithmetic mean.
        median: Median.
        geometric_mean: Geometric mean of the values clamped at 1e-12; None where losses can be negative.
        iqm: Interquartile mean: the mean without the ⌊n/4⌋ smallest and the ⌊n/4⌋ largest values.
    """

    mean: float
    median: float
    geometric_mean: float | None
    iqm: float


def summarize(values: npt.ArrayLike, *, can_be_negative: bool = False) -> Summary:
    """Mean, median, geometric and interquartile mean of losses, shape `(P,)`; nan counts as +∞.

    Args:
        values: Losses, at least one.
        can_be_negative: Leave out the geometric mean.

    Example:
        >>> summary = summarize([1.0, 2.0, 4.0, 1000.0])
        >>> summary.mean, summary.median, summary.iqm
        (251.75, 3.0, 3.0)
    """
    losses = np.sort(as_losses(values))
    n = len(losses)
    with np.errstate(over="ignore", invalid="ignore"):
        geometric = None if can_be_negative else float(np.exp(np.mean(log_losses(losses))))
        middle = losses[n // 4 : n - n // 4]
        return Summary(float(np.mean(losses)), float(np.median(losses)), geometric, float(np.mean(middle)))


def as_losses(values: npt.ArrayLike) -> Array:
    """As a float64 array in which everything that is not finite is +∞."""
    array = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(array), array, np.inf)


def log_losses(values: npt.ArrayLike) -> Array:
    """Natural logarithms of losses, which are clamped at 1e-12."""
    return np.log(np.maximum(np.asarray(values, dtype=np.float64), GEOMETRIC_FLOOR))


def paired_difference(a: npt.ArrayLike, b: npt.ArrayLike) -> Array:
    """`a - b`, problem by problem; where both are infinite the two are tied, with difference 0."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.where(np.isposinf(a) & np.isposinf(b), 0.0, a - b)


def mean(column: npt.ArrayLike) -> float:
    """Mean of values of which some may be infinite; nan if both infinities occur."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.mean(np.asarray(column, dtype=np.float64)))


def bootstrap_means(
    columns: npt.ArrayLike, generator: np.random.Generator, *, num_resamples: int = NUM_RESAMPLES
) -> Array:
    """Means of problems drawn with replacement, the same draws for every column.

    A resample is held as the number of times that each problem is drawn, so the means of all columns are one
    matrix product, and memory does not grow with the number of resamples.

    Args:
        columns: Values of shape `(P,)` or `(P, K)`; may be infinite, not nan.
        generator: Where the draws come from; the same state gives the same resamples.
        num_resamples: Number of resamples R, >= 1.

    Returns:
        Means of shape `(R, K)`; nan where both infinities were drawn.
    """
    values = np.asarray(columns, dtype=np.float64)
    values = values[:, None] if values.ndim == 1 else values
    num_problems, num_columns = values.shape
    # 0 · ∞ is not 0: infinities are counted apart.
    infinite = np.isinf(values)
    finite = np.where(infinite, 0.0, values)
    signs = [np.where(infinite, values == side, False).astype(np.float64) for side in (np.inf, -np.inf)]
    table = np.concatenate([finite, *signs], axis=1) if infinite.any() else finite
    means = np.empty((num_resamples, table.shape[1]))
    rows = max(1, _MAX_COUNTS // num_problems)
    with np.errstate(over="ignore", invalid="ignore"):
        for first in range(0, num_resamples, rows):
            size = min(rows, num_resamples - first)
            counts = np.empty((size, num_problems))
            for row in counts:
                draws = generator.integers(0, num_problems, size=num_problems)
                row[:] = np.bincount(draws, minlength=num_problems)
            means[first : first + size] = counts @ table / num_problems
        if table.shape[1] > num_columns:
            means, above, below = np.split(means, 3, axis=1)
            means = means + np.where(above > 0, np.inf, 0.0) + np.where(below > 0, -np.inf, 0.0)
    return means


def slope_weights(x: Array) -> Array:
    """Weights `(K,)` of values at `x`, whose sum is the slope of the least-squares line."""
    centred = x - x.mean()
    return centred / (centred**2).sum()


def percentile_interval(resampled: npt.ArrayLike, *, level: float = 0.95) -> Interval:
    """The percentile interval of resampled estimates, shape `(R,)`.

    The ends are order statistics, rounded outwards, so infinite estimates need no interpolation.
    """
    values = np.asarray(resampled, dtype=np.float64)
    last, tail = len(values) - 1, (1 - level) / 2
    undefined = np.isnan(values)
    low = np.sort(np.where(undefined, -np.inf, values))[math.floor(tail * last)]
    high = np.sort(np.where(undefined, np.inf, values))[math.ceil((1 - tail) * last)]
    return float(low), float(high)
