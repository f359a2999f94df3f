"""Figures of a suite: learning curves of all tasks as small multiples, and bars of the ratios."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ph_l2o.evaluation.drawn_curves import drawn, smoothing
from ph_l2o.evaluation.estimates import mean
from ph_l2o.evaluation.plots import limits_of, line_style, new_figure, plain_numbers
from ph_l2o.evaluation.suite_outcome import LEARNED, SuiteOutcome
from ph_l2o.evaluation.suite_ratios import SPEED, Ratio, loss_ratio, words
from ph_l2o.palette import Look, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FONT_SIZE = 8.0  # points
_LOWEST = 0.05  # bars of lower ratios end at the edge, with their value beside it
_HIGHEST = 20.0
_FURTHEST = 10.0  # factor at which a performance profile ends
_TICKS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.5, 2, 3, 5, 10, 20)
_MAX_TICKS = 7


def plot_suite_curves(comparison: SuiteOutcome) -> Figure:
    """Median loss over test problems against inner steps, one panel for each task."""
    columns = _columns(len(comparison.tasks))
    rows = max(1, math.ceil(len(comparison.tasks) / columns))
    figure = new_figure(2.6 * columns, 0.9 + 1.9 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    learned = [name for name, kind in comparison.roles.items() if kind == LEARNED]
    shown = looks(comparison.roles, learned)
    for axes, (task, outcome) in zip(panels, comparison.tasks.items(), strict=False):
        curves = {name: drawn(run.curve) for name, run in outcome.runs.items()}
        low, high = limits_of(list(curves.values()), log=True)
        for name, curve in curves.items():
            _draw(axes, shown[name], np.arange(len(curve.median)), np.clip(curve.median, low / 10, high * 10), name)
        axes.set_yscale("log")
        plain_numbers(axes, low, high)
        axes.set_ylim(low, high)
        axes.set_xlim(0, outcome.horizon)
        axes.set_title(task, loc="left", fontsize=_FONT_SIZE)
        _plain_axes(axes)
    for axes in figure.axes[len(comparison.tasks) :]:
        axes.set_visible(False)
    figure.supxlabel("inner step", fontsize=_FONT_SIZE)
    smoothed = any(smoothing(outcome.horizon) > 1 for outcome in comparison.tasks.values())
    note = "\n(from 200 steps on, smoothed)" if smoothed else ""
    figure.supylabel(f"median loss over problems{note}", fontsize=_FONT_SIZE)
    _legend_above(figure)
    return figure


def _columns(num_tasks: int) -> int:
    """Columns of panels, 4 or 3, whichever leaves less room empty."""
    if num_tasks <= 4:
        return max(1, num_tasks)
    return 3 if -num_tasks % 4 > 2 and -num_tasks % 3 < -num_tasks % 4 else 4


def _draw(axes: Axes, look: Look, x: np.ndarray, y: np.ndarray, name: str, **how: Any) -> None:
    width, order = (2.0, 4) if look.strong else (1.2, 3)
    axes.plot(x, y, color=look.color, linestyle=line_style(look), linewidth=width, zorder=order, label=name, **how)


def _plain_axes(axes: Axes) -> None:
    axes.tick_params(labelsize=_FONT_SIZE - 0.5, which="both")
    axes.grid(visible=True, color="#E3E3E3", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend_above(figure: Figure) -> None:
    """In as many columns as there is room for."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    room = figure.get_figwidth() * 72 / (0.6 * _FONT_SIZE)  # characters
    columns = max(1, min(len(labels), int(room / (max(map(len, labels), default=0) + 8))))
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, fontsize=_FONT_SIZE, frameon=False)


def plot_ratios(comparison: SuiteOutcome) -> Figure:
    """Bars of the ratios of each optimizer that is judged, on each task; right of 1 is better than the reference."""
    judged = comparison.judged()
    keys = list(next(iter(comparison.summary.values()), {}))
    tasks = list(comparison.tasks)
    height = 1.2 + (0.12 + 0.15 * len(judged)) * len(tasks)
    figure = new_figure(2.7 * max(1, len(keys)) + 1.5, height)
    panels = figure.subplots(1, max(1, len(keys)), squeeze=False, sharey=True).flat
    shown = looks(judged, judged)
    for axes, key in zip(panels, keys, strict=False):
        by_name = {n: [comparison.tasks[task].ratios[n].get(key) for task in tasks] for n in judged}
        low, high = _ratio_limits([r for ratios in by_name.values() for r in ratios if r is not None])
        for k, name in enumerate(judged):
            _bars(axes, by_name[name], (k - (len(judged) - 1) / 2) * 0.8 / len(judged), 0.8 / len(judged), name,
                  shown[name].color, (low, high))  # fmt: skip
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        ticks = [t for t in _TICKS if low <= t <= high]
        ticks = [t for k, t in enumerate(ticks) if (k - ticks.index(1)) % math.ceil(len(ticks) / _MAX_TICKS) == 0]
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axes.minorticks_off()
        title = words(key) if key == SPEED else f"loss ratio {words(key)}"
        axes.set_title(title, loc="left", fontsize=_FONT_SIZE)
        axes.set_xlabel("ratio and 95 % interval; better →", fontsize=_FONT_SIZE)
        axes.set_yticks(range(len(tasks)), tasks)
        _plain_axes(axes)
        axes.grid(visible=False, axis="y")
    figure.axes[0].invert_yaxis()  # shared: the first task on top
    if len(judged) > 1:
        _legend_above(figure)
    return figure


def _ratio_limits(ratios: list[Ratio]) -> tuple[float, float]:
    """Limits that show all bars and intervals, and 1, but nothing beyond a factor of 20."""
    ends = np.clip([v for r in ratios for v in (r.value, *r.ci95)] or [1.0], _LOWEST, _HIGHEST)
    return min(0.85, float(ends.min()) / 1.1), max(1.18, float(ends.max()) * 1.1)


def _bars(
    axes: Axes, ratios: list[Ratio | None], shift: float, height: float, name: str, color: str,
    limits: tuple[float, float],
) -> None:  # fmt: skip
    """A bar and its interval for each task that has the ratio; what leaves the axes ends at the edge with its value."""
    rows = [i for i, ratio in enumerate(ratios) if ratio is not None]
    found = [ratio for ratio in ratios if ratio is not None]
    places = np.array(rows) + shift
    ends = np.clip([r.value for r in found], *limits)
    intervals = np.clip([r.ci95 for r in found], *limits).reshape(-1, 2)
    errors = np.abs(intervals.T - ends)
    bars = {"ecolor": "#222222", "elinewidth": 1.1, "capsize": 1.8, "capthick": 1.1}
    axes.barh(places, ends - 1, height, left=1, color=color, alpha=0.4, label=name, xerr=errors, error_kw=bars)
    for place, ratio in zip(places, found, strict=True):
        if not limits[0] < ratio.value < limits[1]:
            text = "diverged" if ratio.value == 0 else f"{ratio.value:.2g}"
            left = ratio.value <= limits[0]
            axes.text(
                limits[0] * 1.05 if left else limits[1] / 1.05, place, text, fontsize=_FONT_SIZE - 2,
                verticalalignment="center", horizontalalignment="left" if left else "right",
            )  # fmt: skip


def plot_profile(comparison: SuiteOutcome) -> Figure:
    """Performance profile: of each optimizer, the share of tasks on which its loss is within a factor of the lowest.

    Reference: Dolan and Moré 2002, "Benchmarking optimization software with performance profiles".
    """
    learned = [name for name, kind in comparison.roles.items() if kind == LEARNED]
    shown = looks(comparison.roles, learned)
    figure = new_figure(7.2, 3.8)
    axes = figure.add_subplot()
    for name, factors in profile(comparison).items():
        ends = np.concatenate([[1.0], factors[factors <= _FURTHEST], [_FURTHEST]])
        shares = np.concatenate([[0.0], np.arange(1, len(ends) - 1), [len(ends) - 2]]) / len(factors)
        _draw(axes, shown[name], ends, shares, name, drawstyle="steps-post")
    axes.set_xscale("log")
    axes.set_xlim(1, _FURTHEST)
    axes.set_ylim(0, 1.02)
    axes.set_xticks([1, 1.2, 1.5, 2, 3, 5, _FURTHEST], ["1", "1.2", "1.5", "2", "3", "5", f"{_FURTHEST:g}"])
    axes.minorticks_off()
    axes.set_xlabel("factor of the lowest loss of all optimizers", fontsize=_FONT_SIZE)
    axes.set_ylabel("share of tasks, 1 is all; ↑ better", fontsize=_FONT_SIZE)
    title = f"{comparison.name}: share of {len(comparison.tasks)} tasks with a loss within a factor of the lowest"
    axes.set_title(title, loc="left", fontsize=_FONT_SIZE)
    _plain_axes(axes)
    if comparison.tasks:
        axes.legend(fontsize=_FONT_SIZE, frameon=False, loc="lower right")  # where no curve goes that rises early
    return figure


def profile(comparison: SuiteOutcome) -> dict[str, np.ndarray]:
    """Loss over the lowest loss of all optimizers on each task, in ascending order; +∞ where an optimizer diverged."""
    losses = np.array([[mean(run.judged) for run in o.runs.values()] for o in comparison.tasks.values()])
    if not len(losses):
        return {}
    ratios = loss_ratio(losses.min(1, keepdims=True), losses)
    factors = np.divide(1.0, ratios, out=np.full_like(ratios, np.inf), where=ratios > 0)
    return dict(zip(comparison.roles, np.sort(factors, 0).T, strict=True))
