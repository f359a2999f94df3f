"""Ratios of losses on the tasks of a suite, and what is said of them over tasks."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from ph_l2o.evaluation.estimates import GEOMETRIC_FLOOR, Array, Interval, bootstrap_means, mean, percentile_interval

Draws = dict[str, dict[str, Array]]  # resampled ratios `(R,)` by optimizer and reference, or measure

# What else a ratio is to, or of, besides a reference's name.
BEST, UNTUNED, HELD_OUT, SPEED = "best_baseline", "best_untuned", "held_out", "speed_up"
WORDS = {
    "adam": "to Adam",
    BEST: "to best baseline",
    UNTUNED: "to best untuned",
    HELD_OUT: "held-out",
    SPEED: "speed-up",
}


def words(key: str) -> str:
    """What a ratio is to, or of, for people."""
    return WORDS.get(key, f"to {key}")


def json_key(key: str) -> str:
    """What a ratio is called in files."""
    return {HELD_OUT: "held_out_ratio", SPEED: SPEED}.get(key, f"ratio_to_{key}")


class Ratio(NamedTuple):
    """Loss of a reference over that of an optimizer, and its interval."""

    value: float
    ci95: Interval


class RatioSummary(NamedTuple):
    """Ratios over tasks.

    Attributes:
        iqm: Interquartile mean.
        ci95: Its interval.
        worst: The lowest ratio.
        worst_task: Where it is.
        better: Number of tasks with a ratio above 1.
        num_tasks: Number of tasks.
    """

    iqm: float
    ci95: Interval
    worst: float
    worst_task: str
    better: int
    num_tasks: int


def task_ratios(
    losses: Mapping[str, Array],
    references: Mapping[str, Array],
    reference: str,
    generator: np.random.Generator,
    untuned: Mapping[str, Array] = MappingProxyType({}),
) -> tuple[str | None, dict[str, dict[str, Ratio]], Draws]:
    """The best reference on a task, and the ratios of each optimizer to `reference` and to it (`best_baseline`).

    Those to the best untuned one are beside them, where there is any.

    Args:
        losses: Of each problem, `(P,)`, by optimizer that is judged; +∞ where it diverged.
        references: The same of those that others are judged by; finite.
        reference: One of their names; if it is none, ratios to it are left out.
        generator: Where the resamples of problems come from; all optimizers share them.
        untuned: As `references`, those that are not tuned.
    """
    columns = {("judged", n): v for n, v in losses.items()} | {("reference", n): v for n, v in references.items()}
    columns |= {(UNTUNED, n): v for n, v in untuned.items()}
    resampled = dict(zip(columns, bootstrap_means(np.stack(list(columns.values()), 1), generator).T, strict=True))
    means = {name: mean(values) for name, values in references.items()}
    best = min(means, key=means.__getitem__, default=None)
    against: dict[str, tuple[float, Array]] = {}
    if reference in references:
        against[reference] = means[reference], resampled["reference", reference]
    if best is not None:
        against[BEST] = means[best], np.min([resampled["reference", n] for n in references], axis=0)
    if untuned:
        point = min(mean(values) for values in untuned.values())
        against[UNTUNED] = point, np.min([resampled[UNTUNED, n] for n in untuned], axis=0)
    ratios: dict[str, dict[str, Ratio]] = {name: {} for name in losses}
    draws: Draws = {name: {} for name in losses}
    for name, values in losses.items():
        for key, (point, points) in against.items():
            draws[name][key] = loss_ratio(points, resampled["judged", name])
            value = float(loss_ratio(np.array(point), np.array(mean(values))))
            ratios[name][key] = Ratio(value, percentile_interval(draws[name][key]))
    return best, ratios, draws


def loss_ratio(reference: Array, loss: Array) -> Array:
    """Reference over loss, both clamped at 1e-12: 0 where `loss` is infinite."""
    bottom = np.maximum(loss, GEOMETRIC_FLOOR)
    ratio = np.maximum(reference, GEOMETRIC_FLOOR) / np.where(np.isinf(bottom), 1.0, bottom)
    return np.where(np.isinf(bottom), 0.0, ratio)


def interquartile_mean(values: Array) -> Array:
    """Mean over the last axis without its ⌊n/4⌋ lowest and ⌊n/4⌋ highest values."""
    n = values.shape[-1]
    return np.sort(values, -1)[..., n // 4 : n - n // 4].mean(-1)


def summarize_ratios(
    ratios: Mapping[str, Mapping[str, Mapping[str, Ratio]]], draws: Mapping[str, Draws]
) -> dict[str, dict[str, RatioSummary]]:
    """Over tasks, for each optimizer and reference.

    Args:
        ratios: By task, optimizer and reference; every task has the same optimizers. Of a reference, or measure, that
            not all have, the summary is over those that have it.
        draws: Resamples of them.
    """
    names = next(iter(ratios.values()))
    keys = sorted({key for by_name in ratios.values() for key in by_name[next(iter(names))]}, key=_place)
    return {name: {key: _over_tasks(name, key, ratios, draws) for key in keys} for name in names}


def _place(key: str) -> int:
    """Where a column stands: the reference, then the others in their order."""
    order = (BEST, UNTUNED, HELD_OUT, SPEED)
    return 1 + order.index(key) if key in order else 0


def _over_tasks(
    name: str, key: str, ratios: Mapping[str, Mapping[str, Mapping[str, Ratio]]], draws: Mapping[str, Draws]
) -> RatioSummary:
    values = {task: by_name[name][key].value for task, by_name in ratios.items() if key in by_name[name]}
    return _summary(values, np.stack([draws[task][name][key] for task in values], 1))


def _summary(values: Mapping[str, float], resampled: Array) -> RatioSummary:
    worst = min(values, key=values.__getitem__)
    return RatioSummary(
        float(interquartile_mean(np.array(list(values.values())))),
        percentile_interval(interquartile_mean(resampled)),
        values[worst],
        worst,
        sum(value > 1 for value in values.values()),
        len(values),
    )
