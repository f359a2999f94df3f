"""The picture of a search: scores in the order of the trials, and against each setting that was varied."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ph_l2o.commands.recording import DIVERGED_SCORE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

_OK, _PRUNED, _BEST = "#0072B2", "#E69F00", "#D55E00"  # Okabe and Ito's
_COLUMNS = 3
_WIDTH, _HEIGHT = 3.4, 2.8  # inches of a panel
_SHOWN = 75  # percentile of the scores, a few spans above which a score is drawn at the upper edge


def draw(trials: Sequence[FrozenTrial], varied: Mapping[str, BaseDistribution]) -> bytes:
    """A PNG with a panel for the history and one for each key.

    Args:
        trials: Of the study, of which one has a score at least.
        varied: The search space.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [t for t in trials if t.value is not None]
    scores = np.array([t.value for t in shown], dtype=float)
    pruned = np.array([t.user_attrs.get("status") == "pruned" for t in shown])
    best = int(np.argmin(np.where(pruned, np.inf, scores)))
    low, high = _limits(scores)
    heights = np.minimum(scores, high)
    columns = min(_COLUMNS, 1 + len(varied))
    rows = -(-(1 + len(varied)) // columns)
    figure = Figure(figsize=(_WIDTH * columns, _HEIGHT * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    _points(axes[0], np.array([t.number for t in shown]), heights, pruned, best, scores > high)
    so_far = np.minimum.accumulate(np.where(pruned, np.inf, heights))
    axes[0].step([t.number for t in shown], so_far, where="post", color=_BEST, linewidth=1, zorder=1)
    axes[0].set_xlabel("trial")
    for panel, (key, distribution) in zip(axes[1:], varied.items(), strict=False):
        places = _places(panel, [t.params.get(key) for t in shown], distribution)
        _points(panel, places, heights, pruned, best, scores > high)
        panel.set_xlabel(key)
    for panel in axes[1 + len(varied) :]:
        panel.remove()
    axes[0].set_ylim(low, high + 0.05 * (high - low))
    for panel in axes[::columns]:
        panel.set_ylabel("val/score")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=8.5)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _limits(scores: Any) -> tuple[float, float]:
    """Where the axis ends: hopeless scores would leave nothing to see of the others."""
    finite = scores[scores < DIVERGED_SCORE]
    low, usual, top = finite.min(), np.percentile(finite, _SHOWN), finite.max()
    high = min(top, usual + 3 * (usual - low)) if usual > low else top
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def _points(axes: Axes, places: Any, heights: Any, pruned: Any, best: int, above: Any) -> None:
    for chosen, marker, color, label in (
        (~pruned & ~above, "o", _OK, "ok"),
        (pruned & ~above, "x", _PRUNED, "pruned"),
        (above, "^", "#7F7F7F", "higher, or diverged"),
    ):
        if chosen.any():
            axes.scatter(places[chosen], heights[chosen], s=22, marker=marker, color=color, label=label, zorder=2)
    axes.scatter(places[best], heights[best], s=70, marker="*", color=_BEST, label="best", zorder=3)
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.tick_params(labelsize=8)


def _places(axes: Axes, values: Sequence[Any], distribution: Any) -> Any:
    """Where values stand on the horizontal axis, which is set up for them."""
    choices = getattr(distribution, "choices", None)
    if choices is not None:
        axes.set_xticks(range(len(choices)), [str(choice) for choice in choices])
        axes.set_xlim(-0.5, len(choices) - 0.5)
        return np.array([choices.index(value) for value in values])
    if distribution.log:
        axes.set_xscale("log")
    return np.array(values, dtype=float)
