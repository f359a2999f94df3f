"""Curves as they are drawn: smoothed where there are many steps; and their file."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ph_l2o.evaluation.estimates import Array, Curve
from ph_l2o.files import write_atomically

_SHARE = 50  # of the steps, over which the running mean goes
_SMOOTHED_FROM = 200  # steps
_POINTS = 250  # steps of a curve in the file


def smoothing(num_steps: int) -> int:
    """Steps of the running mean; 1 is none."""
    return num_steps // _SHARE if num_steps >= _SMOOTHED_FROM else 1


def drawn(curve: Curve) -> Curve:
    """Running means of the quartiles over a fiftieth of the steps: else the noise of mini-batches hides them."""
    width = smoothing(len(curve.median) - 1)
    return curve if width == 1 else Curve(*(running_mean(part, width) for part in curve))


def running_mean(values: Array, width: int) -> Array:
    """Over `width` values that end at each, or all so far; one that is infinite makes the means that have it infinite.

    Each mean is a sum of its own: after a spike, differences of running totals would have lost all digits.
    """
    with np.errstate(over="ignore"):
        first = [values[: k + 1].mean() for k in range(width - 1)]
        return np.concatenate([first, np.lib.stride_tricks.sliding_window_view(values, width).mean(-1)])


def write_curves(path: Path, curves: Mapping[tuple[str, ...], Curve], names: tuple[str, ...] = ("optimizer",)) -> Path:
    """Write what is drawn as a CSV file: a row for each curve and step, of at most about 250 steps.

    Args:
        path: Where to write.
        curves: By the values of the columns `names`.
        names: Of the first columns.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([*names, "step", "median", "low", "high"])
    for key, curve in curves.items():
        last, shown = len(curve.median) - 1, drawn(curve)
        for step in np.unique(np.linspace(0, last, min(last, _POINTS) + 1).round().astype(int)):
            writer.writerow([*key, step, *(f"{part[step]:.5g}" for part in shown)])
    return write_atomically(path, text.getvalue())
