"""Speed-up in steps: when does an optimizer reach what the reference reaches at the end?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ph_l2o.evaluation.estimates import Array, bootstrap_means, mean, percentile_interval
from ph_l2o.evaluation.suite_ratios import Ratio
from ph_l2o.evaluation.suite_runs import Places, Run, places

_DIVERGED = 0.0


class Speed(NamedTuple):
    """An optimizer's speed-up on a task.

    Attributes:
        ratio: The speed-up.
        draws: Resamples of it, `(R,)`.
        steps: At which the reference's final loss was reached; None if it was not.
    """

    ratio: Ratio
    draws: Array
    steps: int | None


def speed_ups(
    runs: Mapping[str, Run], reference: str, horizon: int, generators: Mapping[str, np.random.Generator]
) -> dict[str, Speed]:
    """Of each optimizer over the reference.

    Losses are means over problems, and over the last tenth of the run's steps before a place. With T steps, of which an
    optimizer needs k to be at or below the reference's loss at the end, the speed-up is T / k. If it is not there by
    then, the reference is sooner than it, and the speed-up is k / T with the k steps after which the reference is at
    or below the optimizer's loss at the end. It is 0 for an optimizer that diverged.

    Args:
        runs: By optimizer, the reference among them.
        reference: Its name.
        horizon: T.
        generators: Of the resamples of problems, one for each optimizer, in the same state.
    """
    theirs, steps = _as_reference(runs[reference]), np.append(places(horizon), horizon)
    found = {}
    for name, run in runs.items():
        ours = np.where(run.diverged, np.inf, run.smoothed)
        both = np.concatenate([ours, theirs]).T
        point = np.array([[mean(column) for column in both.T]])
        values = np.concatenate([point, bootstrap_means(both, generators[name])])
        speeds, first = _speed(values[:, : len(ours)], values[:, len(ours) :], steps)
        reached = int(steps[first[0]]) if first[0] < len(ours) else None
        found[name] = Speed(Ratio(float(speeds[0]), percentile_interval(speeds[1:])), speeds[1:], reached)
    return found


def _as_reference(run: Run) -> Array:
    return np.where(run.diverged, np.minimum(run.smoothed, run.starts), run.smoothed)


def _speed(ours: Array, theirs: Array, steps: Places) -> tuple[Array, Places]:
    """Speed-ups `(R,)` of curves `(R, K)` over others at the places `steps`, and the first place that is low enough."""
    first, other = _first(ours, theirs[:, -1]), _first(theirs, ours[:, -1])
    slower = np.where(np.isinf(ours[:, -1]), _DIVERGED, steps[other] / steps[-1])
    return np.where(first < ours.shape[1], steps[-1] / steps[first], slower), first


def _first(curves: Array, targets: Array) -> Places:
    """Number of the first place of each curve that is at or below its target; K where there is none."""
    below = curves <= targets[:, None]
    return np.where(below.any(1), below.argmax(1), curves.shape[1])
