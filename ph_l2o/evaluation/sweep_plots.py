"""Pictures of a sweep: lines or points with intervals, a heat map, or parallel coordinates, by what was swept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ph_l2o.evaluation.plots import new_figure, to_png
from ph_l2o.evaluation.sweep_tables import SEED, last_parts, mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
Group = tuple[tuple[str, ...], list[float], int]  # values of the keys, finite results, jobs

_METRICS = {"mean": "final test loss", "val/score": "validation score"}
_COLOR, _FAILED, _GRID = "#0072B2", "#D55E00", "#E3E3E3"
_MAP = "viridis"  # dark is good, so that the best line stands out on white
_FONT_SIZE = 8.5  # points
_MOST_CELLS = 16  # of a side of a heat map with numbers in it
_LONGEST = 24  # characters of a value or a key
_SPREAD = 30  # of results, from which on their axis is logarithmic


def plot_sweep(rows: Sequence[Row], swept: Sequence[str]) -> bytes | None:
    """A PNG of the mean over seeds against what was swept; lower is better in all of them.

    One key: a line, or points for words, with 95 % intervals. Two: a heat map. More: parallel coordinates.

    Args:
        rows: Of all jobs, as in `summary.csv`.
        swept: The keys that differ between them.

    Returns:
        None where no key was swept, or no job gave a finite result.
    """
    metric = next((m for m in _METRICS if any(_is_finite(row.get(m)) for row in rows)), None)
    if metric is None or not swept:
        return None
    keys = [key for key in swept if key != SEED] or [SEED]
    groups = _groups(rows, keys, metric)
    draw = _line if len(keys) == 1 else _heat_map if len(keys) == 2 else _parallel
    figure = draw(groups, last_parts(keys), _METRICS[metric])
    over = "; mean over seeds" if SEED in swept and keys != [SEED] else ""
    figure.suptitle(f"{_METRICS[metric]}{over}; lower is better", x=0.02, ha="left", fontsize=_FONT_SIZE + 1)
    return to_png(figure)


def _groups(rows: Sequence[Row], keys: Sequence[str], metric: str) -> list[Group]:
    """The jobs of each setting."""
    found: dict[tuple[str, ...], list[Any]] = {}
    for row in rows:
        found.setdefault(tuple(str(row.get(key) or "-") for key in keys), []).append(row)
    return [
        (values, [row[metric] for row in group if _counts(row, metric)], len(group)) for values, group in found.items()
    ]


def _line(groups: list[Group], names: Sequence[str], label: str) -> Figure:
    labels = [values[0] for values, _, _ in groups]
    figure = new_figure(max(5.2, min(12.0, 0.55 * len(labels) + 2)), 3.6)
    axes = figure.add_subplot()
    numbers = _numbers(labels)
    if numbers is not None:
        order = sorted(range(len(groups)), key=lambda k: numbers[k])
        groups, places = [groups[k] for k in order], sorted(numbers)
        if places[0] > 0 and places[-1] / places[0] >= 10:
            axes.set_xscale("log")
        elif all(map(float.is_integer, places)):
            axes.locator_params(axis="x", integer=True)
    else:
        places = list(map(float, range(len(labels))))
        axes.set_xticks(places, _texts(labels), **_turned(sum(map(len, labels)) >= 50))
        axes.set_xlim(-0.5, len(labels) - 0.5)
    shown = [(x, *mean_interval(values)) for x, (_, values, _) in zip(places, groups, strict=True) if values]
    axes.plot(places, [shown[0][1]] * len(places), linestyle="none")  # settings without results are in the picture too
    for x, mean, low, high in shown:
        if not math.isnan(low):
            axes.plot([x, x], [low, high], color=_COLOR, linewidth=1.2, alpha=0.7)
        axes.plot(x, mean, "o", color=_COLOR, markersize=5)
    for x, (_, values, _) in zip(places, groups, strict=True):
        axes.plot([x] * len(values), values, "o", color="#7F7F7F", markersize=2.5, zorder=1)
    if numbers is not None and names[0] != SEED:
        axes.plot([p[0] for p in shown], [p[1] for p in shown], color=_COLOR, linewidth=1.6)
    results = [v for _, values, _ in groups for v in values]
    if min(results) > 0 and max(results) / min(results) >= _SPREAD:
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylim(min(results) / 1.5, max(results) * 1.5)
    else:
        axes.set_ylim(*_limits(results, shown))
    _mark_failures(axes, places, groups)
    axes.set_xlabel(_text(names[0]), fontsize=_FONT_SIZE)
    axes.set_ylabel(f"{label}, 95 % intervals" if any(len(g[1]) > 1 for g in groups) else label, fontsize=_FONT_SIZE)
    axes.grid(visible=True, which="major", color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=_FONT_SIZE)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _limits(values: Sequence[float], shown: Sequence[tuple[float, float, float, float]]) -> tuple[float, float]:
    """Those of the jobs and of the intervals, of which those of two seeds, which are very wide, are cut."""
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0
    low = max(low - span, min((s[2] for s in shown if not math.isnan(s[2])), default=low))
    high = min(high + span, max((s[3] for s in shown if not math.isnan(s[3])), default=high))
    return min(low, min(values)) - 0.05 * span, max(high, max(values)) + 0.05 * span


def _mark_failures(axes: Axes, places: Sequence[float], groups: Sequence[Group]) -> None:
    """How many jobs of a setting gave nothing, at the top."""
    for x, (_, values, jobs) in zip(places, groups, strict=True):
        if len(values) < jobs:
            text = f"✕ {jobs - len(values)} of {jobs}"
            where = (x, 1.0)
            axes.annotate(
                text, where, (0, 3), "data", textcoords="offset points", ha="center", fontsize=_FONT_SIZE - 1,
                color=_FAILED, annotation_clip=False,
            ).xycoords = ("data", "axes fraction")  # fmt: skip


def _heat_map(groups: list[Group], names: Sequence[str], label: str) -> Figure:
    sides = [_sorted(dict.fromkeys(values[side] for values, _, _ in groups)) for side in (0, 1)]
    down, right = sides
    means = np.full((len(down), len(right)), np.nan)
    texts: dict[tuple[int, int], str] = {}
    for (first, second), values, jobs in groups:
        cell = down.index(first), right.index(second)
        if values:
            means[cell] = mean_interval(values)[0]
        missing = jobs - len(values)
        texts[cell] = (f"{means[cell]:.3g}" if values else "✕") + (f"\n✕ {missing}" if values and missing else "")
    figure = new_figure(min(12.0, 2.6 + 0.75 * len(right)), min(9.0, 1.6 + 0.45 * len(down)))
    axes = figure.add_subplot()
    image = axes.imshow(means, aspect="auto", cmap=_MAP, norm=_norm(means))
    axes.set_xticks(range(len(right)), _texts(right), **_turned(max(map(len, right)) >= 8))
    axes.set_yticks(range(len(down)), _texts(down))
    if max(len(down), len(right)) <= _MOST_CELLS:
        for (y, x), text in texts.items():
            color = _readable(image, means[y, x])
            axes.text(x, y, text, ha="center", va="center", fontsize=_FONT_SIZE, color=color)
    axes.set_xlabel(_text(names[1]), fontsize=_FONT_SIZE)
    axes.set_ylabel(_text(names[0]), fontsize=_FONT_SIZE)
    axes.tick_params(labelsize=_FONT_SIZE, length=0)
    axes.spines[:].set_visible(False)
    _color_bar(figure, image, axes, label)
    return figure


def _parallel(groups: list[Group], names: Sequence[str], label: str) -> Figure:
    figure = new_figure(min(12.0, 2.4 + 1.5 * len(names)), 4.2)
    axes = figure.add_subplot()
    sides = [_sorted(dict.fromkeys(values[k] for values, _, _ in groups)) for k in range(len(names))]
    good = [(values, mean_interval(found)[0]) for values, found, _ in groups if found]
    from matplotlib.cm import ScalarMappable

    image = ScalarMappable(_norm(np.array([mean for _, mean in good])), _MAP)
    for values, found, _ in groups:
        if not found:
            heights = [_height(sides[k], value) for k, value in enumerate(values)]
            axes.plot(heights, color=_FAILED, linewidth=0.8, linestyle=":", zorder=2)
    for values, mean in sorted(good, key=lambda item: -item[1]):  # the best one on top
        heights = [_height(sides[k], value) for k, value in enumerate(values)]
        best = mean == min(m for _, m in good)
        axes.plot(heights, color=image.to_rgba(np.array(mean)), linewidth=2.6 if best else 1.2, zorder=4 if best else 3)
    for k, side in enumerate(sides):
        axes.axvline(k, color="#7F7F7F", linewidth=0.8, zorder=1)
        for value in side:
            place = (k, _height(side, value))
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.8}
            look = {"va": "center", "fontsize": _FONT_SIZE, "zorder": 5, "bbox": box}
            axes.annotate(_text(value), place, (4, 0), textcoords="offset points", **look)
    is_long = sum(map(len, names)) >= 12 * len(names)
    axes.set_xticks(range(len(names)), _texts(names), fontsize=_FONT_SIZE, **_turned(is_long))
    axes.set_yticks([])
    axes.set_xlim(-0.15, len(names) - 0.6)
    axes.set_ylim(-0.06, 1.06)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    _color_bar(figure, image, axes, label)
    return figure


def _text(value: str) -> str:
    """A value or a key as a label: one short line, of which nothing is read as a formula."""
    line = " ".join(value.split())
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST // 2]}…{line[1 - _LONGEST // 2 :]}"
    return line.replace("$", r"\$")


def _texts(values: Sequence[str]) -> list[str]:
    return list(map(_text, values))


def _turned(is_long: bool) -> dict[str, Any]:
    """How labels below an axis are turned, so that long ones do not overlap, and end at their ticks."""
    return {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if is_long else {}


def _height(side: Sequence[str], value: str) -> float:
    return side.index(value) / (len(side) - 1) if len(side) > 1 else 0.5


def _color_bar(figure: Figure, image: Any, axes: Axes, label: str) -> None:
    bar = figure.colorbar(image, ax=axes)
    bar.ax.tick_params(labelsize=_FONT_SIZE)
    bar.set_label(label, fontsize=_FONT_SIZE)


def _norm(means: Any) -> Any:
    from matplotlib.colors import LogNorm, Normalize

    finite = means[np.isfinite(means)]
    if len(finite) and finite.min() > 0 and finite.max() / finite.min() > 10:
        return LogNorm(finite.min(), finite.max())
    return Normalize(*(float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0))


def _readable(image: Any, value: float) -> str:
    if math.isnan(value):
        return _FAILED
    red, green, blue, _ = image.to_rgba(np.array(value))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def _numbers(labels: Sequence[str]) -> list[float] | None:
    try:
        found = [float(label) for label in labels]
    except ValueError:
        return None
    return found if all(map(math.isfinite, found)) else None


def _sorted(labels: Any) -> list[str]:
    """Numbers by their values; words as they were typed."""
    labels = list(labels)
    return labels if _numbers(labels) is None else sorted(labels, key=float)


def _counts(row: Row, metric: str) -> bool:
    return row.get("status") == "ok" and _is_finite(row.get(metric))


def _is_finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)
