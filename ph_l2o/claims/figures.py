"""A figure for each claim, of panels that its result file names."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ph_l2o.claims.run_panels import draw_energies, draw_paths
from ph_l2o.evaluation.estimates import Curve
from ph_l2o.evaluation.plots import ink, label_ends, limits_of, line_style, new_figure, plain_numbers, to_png
from ph_l2o.files import write_atomically
from ph_l2o.palette import looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FONT_SIZE = 8.5  # points
_WIDTH, _HEIGHT = 5.6, 3.7  # of a panel, in inches
_COLUMNS = 2
_LONG = 1000  # steps, from which their axis is logarithmic
_FEW = 5  # factor from end to end, up to which an axis of intervals is linear: a logarithmic one would lack numbers
_FAR = 1e3  # factor beyond which a value is drawn at the edge, with its number


def write_figures(results: Mapping[str, Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write `study_<claim>.png` for each claim that has panels."""
    return [
        write_atomically(folder / f"study_{name}.png", to_png(claim_figure(result)))
        for name, result in results.items()
        if result.get("figure")
    ]


def claim_figure(result: Mapping[str, Any]) -> Figure:
    """The figure of a claim, from its result file."""
    panels = result["figure"]["panels"]
    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(_WIDTH * columns, _HEIGHT * rows)
    drawn = [list(panel["rows"] or result["measurements"][panel["measurement"]]["rows"]) for panel in panels]
    names = dict.fromkeys(name for few in sorted(drawn, key=len) for name in few)  # those of few rows look least alike
    shared = looks(names, [name for panel in panels for name in panel["strong"]])
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1)
        measurement = result["measurements"][panel["measurement"]]
        shown = {name: measurement["rows"][name] for name in drawn[number]}
        shown = {name: {**row, "label": _label(row), "look": shared[name]} for name, row in shown.items()}
        if panel["draw"] == "scaling":
            _scaling(figure, axes, panel, result["measurements"], shown)
        else:
            PANELS[panel["draw"]](figure, axes, panel, measurement, shown)
        title = textwrap.fill(panel["title"], int(_WIDTH * 9))
        axes.set_title(title, loc="left", fontsize=_FONT_SIZE + 0.5)
        axes.tick_params(labelsize=_FONT_SIZE)
        axes.grid(visible=True, which="major", color="#E3E3E3", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _label(row: Mapping[str, Any]) -> str:
    """As the table's, and by whose recipe, where that is the study's."""
    return f"{row['label']} (study)" if row["recipe"] == "study" else row["label"]


Rows = Mapping[str, Mapping[str, Any]]


def _curves(figure: Figure, axes: Axes, panel: Mapping[str, Any], measurement: Mapping[str, Any], rows: Rows) -> None:
    """Medians over problems with bands from quartile to quartile, each with its name at its end."""
    of = panel["of"] or next(iter(next(iter(rows.values()))["curves"]))
    found = {name: row["curves"][of] for name, row in rows.items()}
    curves = {
        name: Curve(*(np.array([float(y) for y in lines[part]]) for part in ("median", "low", "high")))
        for name, lines in found.items()
    }
    steps = {name: np.array([float(x) for x in lines["steps"]]) for name, lines in found.items()}
    log = all(np.min(curve.median) > 0 for curve in curves.values())
    low, high = limits_of(list(curves.values()), log=log)
    margin = (low / 10, high * 10) if log else (2 * low - high, 2 * high - low)
    for name, row in sorted(rows.items(), key=lambda item: item[1]["look"].strong):
        look = row["look"]
        median, lower, upper = (np.clip(part, *margin) for part in curves[name])
        if look.strong:
            axes.fill_between(steps[name], lower, upper, color=look.color, alpha=0.18, linewidth=0)
        width, order = (2.2, 4) if look.strong else (1.3, 3)
        axes.plot(steps[name], median, color=look.color, linestyle=line_style(look), linewidth=width, zorder=order)
    if log:
        axes.set_yscale("log")
        plain_numbers(axes, low, high)
    axes.set_ylim(low, high)
    last = max(float(x[-1]) for x in steps.values())
    if last >= _LONG:
        axes.set_xscale("log")
    axes.set_xlim(1 if last >= _LONG else 0, last)
    axes.set_xlabel("inner step", fontsize=_FONT_SIZE)
    axes.set_ylabel(f"{of.replace('_', ' ')} (median; band: quartiles)", fontsize=_FONT_SIZE)
    ends = {row["label"]: float(curves[name].median[-1]) for name, row in rows.items()}
    label_ends(figure, axes, {row["label"]: row["look"] for row in rows.values()}, ends)


def _intervals(
    figure: Figure, axes: Axes, panel: Mapping[str, Any], measurement: Mapping[str, Any], rows: Rows
) -> None:
    """Means or ratios of rows with their intervals, the best one on top."""
    del figure
    of = panel["of"] or ("ratio" if measurement["reference"] else "mean")
    found = {name: row[of] if of in row else row["measures"][of] for name, row in rows.items()}
    order = sorted(found, key=lambda name: -float(found[name]["value"]))
    ends = {name: [float(found[name]["value"]), *(float(e) for e in found[name]["ci95"])] for name in order}
    finite = [x for values in ends.values() for x in values if math.isfinite(x) and x > 0]
    middle = 1.0 if of == "ratio" else float(np.median(finite)) if finite else 1.0
    edges = (max(min(finite, default=1), middle / _FAR) / 1.15, min(max(finite, default=1), middle * _FAR) * 1.15)
    for place, name in enumerate(order):
        value, low, high = (min(max(x, edges[0]), edges[1]) for x in ends[name])
        look = rows[name]["look"]
        axes.plot([low, high], [place, place], color=look.color, linewidth=2.4 if look.strong else 1.4)
        axes.plot(value, place, "o", color=look.color, markersize=6 if look.strong else 4.5)
        beyond = " →" if ends[name][0] > edges[1] else " ←" if ends[name][0] < edges[0] else ""
        text = f"{ends[name][0]:.3g}{beyond}" if math.isfinite(ends[name][0]) else "∞ →"
        axes.annotate(text, (high, place), xytext=(4, 0), textcoords="offset points", va="center",
                      fontsize=_FONT_SIZE - 1, color=ink(look.color))  # fmt: skip
    if of == "ratio":
        axes.axvline(1, color="#555555", linewidth=0.8, linestyle=(0, (4, 2)))
    axes.set_xscale("log" if edges[1] > _FEW * edges[0] else "linear")
    axes.set_xlim(*edges)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set_yticks(range(len(order)), [rows[name]["label"] for name in order])
    reference = measurement["reference"]
    what = "ratio of medians" if measurement["statistic"] == "median" else "geometric mean of ratios"
    to = f"{what} to {measurement['rows'][reference]['label']}" if of == "ratio" else of.replace("_", " ")
    axes.set_xlabel(f"{to} (95 %)", fontsize=_FONT_SIZE)


def _scaling(figure: Figure, axes: Axes, panel: Mapping[str, Any], measurements: Mapping[str, Any], rows: Rows) -> None:
    """Medians of each row over several measurements against a number of theirs, both axes logarithmic.

    What is infinite lies at the top.
    """
    across = sorted((float(x), name) for name, x in panel["across"].items())
    found = {n: [float(measurements[name]["rows"][n]["median"]["value"]) for _, name in across] for n in rows}
    finite = [y for values in found.values() for y in values if math.isfinite(y)] or [1.0]
    horizon = max(measurements[name]["horizon"] for _, name in across)
    low, high = max(min(finite), 1e-12) / 1.3, horizon * 1.15
    for name, row in rows.items():
        look = row["look"]
        line = {"color": look.color, "linestyle": line_style(look), "linewidth": 2.2 if look.strong else 1.3}
        heights = [min(y, high) for y in found[name]]
        axes.plot([x for x, _ in across], heights, marker="o", markersize=4.5 if look.strong else 3, **line)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(across[0][0] / 1.2, across[-1][0] * 1.08)
    axes.set_ylim(low, high)
    axes.set_xlabel(panel["axis"], fontsize=_FONT_SIZE)
    measure = str(measurements[across[0][1]]["measure"]).replace("_", " ")
    axes.set_ylabel(f"{measure} (median)", fontsize=_FONT_SIZE)
    ends = {row["label"]: found[name][-1] for name, row in rows.items()}
    label_ends(figure, axes, {row["label"]: row["look"] for row in rows.values()}, ends)


PANELS: dict[str, Callable[[Any, Any, Mapping[str, Any], Mapping[str, Any], Rows], None]] = {
    "curves": _curves,
    "intervals": _intervals,
    "paths": draw_paths,
    "energies": draw_energies,
}
