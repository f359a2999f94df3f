"""Panels of single runs: paths over contour lines, and energies over time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ph_l2o.claims.trajectories import ACCOUNT, PARTS
from ph_l2o.evaluation.plots import ink, label_ends, line_style
from ph_l2o.palette import looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_FONT_SIZE = 8.5  # points
_LEVELS = 14  # contour lines
_DOTS = 10  # inner steps from dot to dot on a path
_DEEP = 1e-8  # share of the largest energy below which nothing is drawn
_GONE = "dissipated"
_PAPER = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
_WORDS = {ACCOUNT: "account, never rises", "tank": "tank, left to spend", "kinetic": "kinetic", "spring": "spring"}

Rows = Mapping[str, Mapping[str, Any]]


def draw_paths(
    figure: Figure, axes: Axes, panel: Mapping[str, Any], measurement: Mapping[str, Any], rows: Rows
) -> None:
    """The way of each row, with a dot after every ten steps, and where start, saddle and minima are.

    From the step on that counts as the escape a path is pale.
    """
    scene = measurement["scene"]
    x, y, loss = (np.array(scene[key], dtype=float) for key in ("x", "y", "loss"))
    axes.contour(x, y, loss, levels=np.quantile(loss, np.linspace(0.01, 0.97, _LEVELS)), colors="#C4C4C4",
                 linewidths=0.7)  # fmt: skip
    lines: dict[str, Line2D] = {}
    axes.set_xlim(x[0], x[-1])
    axes.set_ylim(y[0], y[-1])
    shown = {name: row["look"] for name, row in rows.items()}
    for name, look in sorted(shown.items(), key=lambda item: item[1].strong):
        path = np.array([[float(v) for v in rows[name]["curves"]["path"][key]] for key in ("x", "y")])
        steps = float(rows[name]["median"]["value"])
        last = int(steps) + 1 if math.isfinite(steps) else path.shape[1]
        line = {"color": look.color, "linestyle": line_style(look), "linewidth": 2.2 if look.strong else 1.5}
        axes.plot(*path[:, last - 1 :], alpha=0.25, zorder=3, **{**line, "linewidth": 0.9})
        label = f"{rows[name]['label']}: {_steps(rows[name])}"
        lines[name] = axes.plot(*path[:, :last], zorder=4, label=label, **line)[0]
        axes.plot(*path[:, :last:_DOTS], "o", color=look.color, markersize=4 if look.strong else 3, zorder=5)
    marks = [("start", scene["start"], "o", 10)] + [("minimum", m, "*", -16) for m in scene["minima"]]
    marks += [("saddle", scene["saddle"], "X", -16)] if scene["saddle"] else []
    for name, point, marker, above in marks:
        axes.plot(*point, marker, color="white", markeredgecolor="black", markersize=9, zorder=6)
        axes.annotate(name, point, xytext=(0, above), textcoords="offset points", ha="center", va="center",
                      fontsize=_FONT_SIZE, zorder=7, bbox=_PAPER)  # fmt: skip
    axes.set_xlabel("first coordinate", fontsize=_FONT_SIZE)
    axes.set_ylabel("second coordinate", fontsize=_FONT_SIZE)
    legend = axes.legend(
        handles=[lines[name] for name in rows], loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False,
        fontsize=_FONT_SIZE, handlelength=3.2,
    )  # fmt: skip
    for text, look in zip(legend.get_texts(), shown.values(), strict=True):
        text.set(color=ink(look.color), fontweight="bold" if look.strong else "normal")


def _steps(row: Mapping[str, Any]) -> str:
    steps = float(row["median"]["value"])
    return f"{steps:.0f} steps" if math.isfinite(steps) else "stays"


def draw_energies(
    figure: Figure, axes: Axes, panel: Mapping[str, Any], measurement: Mapping[str, Any], rows: Rows
) -> None:
    """Account, what of it is in use and what is gone of it, and the loss, of the first row; medians over problems."""
    del panel, measurement
    curves = next(iter(rows.values()))["curves"]
    steps = np.array([float(v) for v in curves["loss"]["steps"]])
    found = {name: np.array([float(v) for v in line["median"]]) for name, line in curves.items()}
    lines = {"loss": found["loss"], _GONE: found[ACCOUNT][0] - found[ACCOUNT]}
    lines |= {_WORDS[name]: found[name] for name in (ACCOUNT, *PARTS) if name in found}
    high = max(float(line.max()) for line in lines.values()) * 3
    low = high * _DEEP
    drawn = {name: line for name, line in lines.items() if (line > low).any()}
    shown = looks(drawn, ("loss",))
    for name, look in shown.items():
        line = {"color": look.color, "linestyle": line_style(look), "linewidth": 2.2 if look.strong else 1.5}
        axes.plot(steps + 1, np.where(drawn[name] > 0, drawn[name], np.nan), **line)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(1, steps[-1] + 1)
    axes.set_ylim(low, high)
    axes.set_xlabel("inner step", fontsize=_FONT_SIZE)
    axes.set_ylabel("energies and loss (median)", fontsize=_FONT_SIZE)
    if missing := [name for name in lines if name not in drawn]:
        axes.text(0.02, 0.03, f"{', '.join(missing)}: 0 throughout", transform=axes.transAxes, fontsize=_FONT_SIZE)
    names = {name: f"{name} ↓" if line[-1] < low else name for name, line in drawn.items()}
    ends = {names[name]: float(line[-1]) for name, line in drawn.items()}
    label_ends(figure, axes, {names[name]: look for name, look in shown.items()}, ends)
