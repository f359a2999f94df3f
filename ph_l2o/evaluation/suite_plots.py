"""Figures of a suite: learning curves of all tasks as small multiples, and bars of the ratios."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ph_l2o.evaluation.estimates import mean
from ph_l2o.evaluation.plots import limits_of, looks_of, new_figure
from ph_l2o.evaluation.suite_outcome import LEARNED, SuiteOutcome
from ph_l2o.evaluation.suite_ratios import SPEED, loss_ratio, words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 4
_FONT_SIZE = 7.5  # points
_LOWEST = 0.05  # bars of lower ratios end at the edge, with their value beside it
_HIGHEST = 20.0
_FURTHEST = 10.0  # factor at which a performance profile ends


def plot_suite_curves(comparison: SuiteOutcome) -> Figure:
    """Median loss over test problems against inner steps, one panel for each task."""
    rows = math.ceil(len(comparison.tasks) / _COLUMNS)
    figure = new_figure(2.6 * _COLUMNS, 0.5 + 1.9 * rows)
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).flat
    judged = [name for name, kind in comparison.roles.items() if kind == LEARNED]
    looks: dict[str, Any] = {}
    for axes, (task, outcome) in zip(panels, comparison.tasks.items(), strict=False):
        curves = {name: run.curve for name, run in outcome.runs.items()}
        looks = looks_of(curves, judged)
        low, high = limits_of(list(curves.values()), log=True)
        for name, look in looks.items():
            median = np.clip(_smooth(curves[name].median), low / 10, high * 10)
            width = 1.9 if look.strong else 1.0
            axes.plot(median, color=look.color, linestyle=look.style, linewidth=width, label=name)
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        axes.set_xlim(0, outcome.horizon)
        axes.set_title(task, loc="left", fontsize=_FONT_SIZE)
        axes.tick_params(labelsize=_FONT_SIZE - 1, which="both")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in figure.axes[len(comparison.tasks) :]:
        axes.set_visible(False)
    _legend_above(figure)
    return figure


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
    figure = new_figure(3.6 * max(1, len(keys)) + 1.4, 0.9 + (0.1 + 0.13 * len(judged)) * len(tasks))
    panels = figure.subplots(1, max(1, len(keys)), squeeze=False, sharey=True).flat
    looks = looks_of(dict.fromkeys(judged), judged)  # type: ignore[arg-type]
    for axes, key in zip(panels, keys, strict=False):
        height = 0.8 / len(judged)
        for k, name in enumerate(judged):
            by_task = {i: comparison.tasks[task].ratios[name].get(key) for i, task in enumerate(tasks)}
            ratios = [ratio for ratio in by_task.values() if ratio is not None]
            ends = np.clip([r.value for r in ratios], _LOWEST, _HIGHEST)
            intervals = np.clip([r.ci95 for r in ratios], _LOWEST, _HIGHEST)
            rows = [i for i, ratio in by_task.items() if ratio is not None]
            places = np.array(rows) + (k - (len(judged) - 1) / 2) * height
            axes.barh(places, ends - 1, height, left=1, color=looks[name].color, alpha=0.75, label=name)
            axes.hlines(places, intervals[:, 0], intervals[:, 1], color="#333333", linewidth=0.7)
            for place, ratio in zip(places, ratios, strict=True):
                if not _LOWEST < ratio.value < _HIGHEST:
                    text = "diverged" if ratio.value == 0 else f"{ratio.value:.2g}"
                    left = ratio.value <= _LOWEST
                    axes.text(
                        _LOWEST * 1.05 if left else _HIGHEST / 1.05, place, text, fontsize=_FONT_SIZE - 2,
                        verticalalignment="center", horizontalalignment="left" if left else "right",
                    )  # fmt: skip
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_xlim(_LOWEST, _HIGHEST)
        axes.set_xticks([0.1, 0.2, 0.5, 1, 2, 5, 10], ["0.1", "0.2", "0.5", "1", "2", "5", "10"])
        axes.minorticks_off()
        axes.set_title(f"loss ratio {words(key)}" if key != SPEED else words(key), loc="left", fontsize=_FONT_SIZE)
        axes.tick_params(labelsize=_FONT_SIZE)
        axes.set_yticks(range(len(tasks)), tasks)
        axes.grid(visible=True, axis="x", color="#E3E3E3", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].invert_yaxis()  # shared: the first task on top
    if len(judged) > 1:
        _legend_above(figure)
    return figure


def plot_profile(comparison: SuiteOutcome) -> Figure:
    """Performance profile: of each optimizer, the share of tasks on which its loss is within a factor of the lowest.

    Reference: Dolan and Moré 2002, "Benchmarking optimization software with performance profiles".
    """
    judged = [name for name, kind in comparison.roles.items() if kind == LEARNED]
    looks = looks_of(dict.fromkeys(comparison.roles), judged)  # type: ignore[arg-type]
    figure = new_figure(8.4, 3.8)
    axes = figure.add_subplot()
    for name, factors in profile(comparison).items():
        ends = np.concatenate([[1.0], factors[factors <= _FURTHEST], [_FURTHEST]])
        shares = np.concatenate([[0.0], np.arange(1, len(ends) - 1), [len(ends) - 2]]) / len(factors)
        look = looks[name]
        width = 1.9 if look.strong else 1.0
        axes.step(ends, shares, where="post", color=look.color, linestyle=look.style, linewidth=width, label=name)
    axes.set_xscale("log")
    axes.set_xlim(1, _FURTHEST)
    axes.set_ylim(0, 1.02)
    axes.set_xticks([1, 1.2, 1.5, 2, 3, 5, _FURTHEST], ["1", "1.2", "1.5", "2", "3", "5", f"{_FURTHEST:g}"])
    axes.minorticks_off()
    axes.set_xlabel("factor", fontsize=_FONT_SIZE)
    title = f"{comparison.name}: share of {len(comparison.tasks)} tasks with a loss within a factor of the lowest"
    axes.set_title(title, loc="left", fontsize=_FONT_SIZE)
    axes.tick_params(labelsize=_FONT_SIZE)
    axes.grid(visible=True, color="#E3E3E3", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if comparison.tasks:
        figure.legend(fontsize=_FONT_SIZE, frameon=False, loc="outside right upper")
    return figure


def profile(comparison: SuiteOutcome) -> dict[str, np.ndarray]:
    """Loss over the lowest loss of all optimizers on each task, in ascending order; +∞ where an optimizer diverged."""
    losses = np.array([[mean(run.judged) for run in o.runs.values()] for o in comparison.tasks.values()])
    if not len(losses):
        return {}
    ratios = loss_ratio(losses.min(1, keepdims=True), losses)
    factors = np.divide(1.0, ratios, out=np.full_like(ratios, np.inf), where=ratios > 0)
    return dict(zip(comparison.roles, np.sort(factors, 0).T, strict=True))


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over a fiftieth of the steps: losses of mini-batches hide each other otherwise."""
    width = max(1, len(values) // 50)
    totals = np.cumsum(np.concatenate([[0.0], np.where(np.isfinite(values), values, 1e30)]))
    first = np.maximum(np.arange(1, len(values) + 1) - width, 0)
    last = np.arange(1, len(values) + 1)
    return (totals[last] - totals[first]) / (last - first)
