"""Learning curves of a comparison."""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ph_l2o.evaluation.drawn_curves import drawn, smoothing
from ph_l2o.evaluation.estimates import GEOMETRIC_FLOOR, Array, Curve
from ph_l2o.palette import Look, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABELS_AT = 1.045  # in widths of the axes
_FONT_SIZE = 8.5  # points
_MAX_BANDS = 3  # more would hide each other
_HEADROOM = 3.0  # a diverging curve may rise this far above the highest start before it leaves the figure


def plot_curves(
    curves: Mapping[str, Curve],
    *,
    title: str,
    emphasized: Sequence[str] = (),
    num_problems: int,
    ylabel: str = "loss (median)",
    size: tuple[float, float] = (7.2, 4.3),
) -> tuple[Figure, Axes]:
    """Median loss against inner steps, with the interquartile range as a band.

    Over many steps both are running means. Of many curves, only the emphasized ones have a band. A curve that diverges
    leaves the figure at its top.

    Args:
        curves: One curve for each optimizer.
        title: First line of the title.
        emphasized: Names whose curves are thick.
        num_problems: Number of problems, for the title.
        ylabel: Label of the vertical axis.
        size: Width and height in inches.
    """
    figure = new_figure(*size)
    axes = figure.add_subplot()
    curves = {name: drawn(curve) for name, curve in curves.items()}
    log = all(np.min(c.median) >= 0 for c in curves.values())
    low, high = limits_of(list(curves.values()), log=log)
    shown = looks(curves, emphasized)
    strongest = [name for name, look in shown.items() if look.strong]
    banded = list(shown) if len(shown) <= _MAX_BANDS or not strongest else strongest
    medians: dict[str, Array] = {}
    for name in sorted(shown, key=lambda n: shown[n].strong):  # what is emphasized lies on top
        look = shown[name]
        # What lies outside the axes, or is infinite, is drawn just outside of them.
        margin = (low / 10, high * 10) if log else (2 * low - high, 2 * high - low)
        medians[name], lower, upper = (np.clip(part, *margin) for part in curves[name])
        steps, strong = np.arange(len(lower)), look.strong
        if name in banded:
            axes.fill_between(steps, lower, upper, color=look.color, alpha=0.2 if strong else 0.1, linewidth=0)
        width, order = (2.4, 4) if strong else (1.3, 3)
        axes.plot(medians[name], color=look.color, linestyle=line_style(look), linewidth=width, zorder=order)

    if log:
        axes.set_yscale("log")
        plain_numbers(axes, low, high)
    axes.set_ylim(low, high)
    axes.set_xlim(0, max(map(len, medians.values())) - 1)
    axes.set_xlabel("inner step", fontsize=_FONT_SIZE)
    axes.set_ylabel(ylabel, fontsize=_FONT_SIZE)
    axes.tick_params(labelsize=_FONT_SIZE)
    whose = "" if len(banded) == len(shown) else f" of {', '.join(banded)}"
    text = f"{title}: median over {num_problems:,} test problems; band: interquartile range{whose}"
    if (width := smoothing(max(map(len, medians.values())) - 1)) > 1:
        text += f"; both are running means over {width} steps"
    axes.set_title(textwrap.fill(text, _characters(size[0] - 0.9)), loc="left", fontsize=_FONT_SIZE)
    axes.grid(visible=True, which="major", color="#E3E3E3", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    label_ends(figure, axes, shown, {name: float(median[-1]) for name, median in medians.items()})
    return figure, axes


def new_figure(width: float, height: float, *, dpi: int = 160) -> Figure:
    """A figure of this size in inches; independent of pyplot, so that the user's backend and open figures stay."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file's content."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # a box is shown in its place
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _characters(inches: float) -> int:
    """How many characters fit into a width."""
    return max(20, int(inches * 72 / (0.55 * _FONT_SIZE)))


def line_style(look: Look) -> Any:
    """The dashes of a look, for matplotlib."""
    return (0, look.dashes) if look.dashes else "solid"


def ink(color: str) -> str:
    """A darker shade, in which text can be read on white."""
    return "#" + "".join(f"{int(int(color[k : k + 2], 16) * 0.7):02X}" for k in (1, 3, 5))


def plain_numbers(axes: Axes, low: float, high: float) -> None:
    """0.3 in place of 3 · 10⁻¹ on a logarithmic vertical axis of these limits, where that is short."""
    if low > 0.001 and high < 1000:
        for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            which(_plain_decades(high / low))


def _plain_decades(span: float) -> Any:
    """0.3 in place of 3 · 10⁻¹; between the powers of ten only where these are few."""
    from matplotlib.ticker import FuncFormatter

    shown = (1, 2, 3, 5) if span < 100 else (1,)
    return FuncFormatter(lambda y, _: f"{y:g}" if round(y / 10 ** math.floor(math.log10(y) + 1e-9)) in shown else "")


def limits_of(curves: list[Curve], *, log: bool) -> tuple[float, float]:
    """Limits that show all medians, but of a diverging curve only its beginning."""
    floor = GEOMETRIC_FLOOR if log else -np.inf
    medians = np.concatenate([c.median for c in curves])
    medians = np.maximum(medians[np.isfinite(medians)], floor)
    starts = np.array([v for c in curves for v in (c.median[0], c.high[0]) if np.isfinite(v)])
    start = max(float(starts.max(initial=floor)), floor) if len(starts) else 1.0
    low, high = float(medians.min(initial=start)), float(medians.max(initial=start))
    if not log:
        high = min(high, start + max(start - low, 1e-12))
        margin = 0.05 * max(high - low, 1e-12)
        return low - margin, high + margin
    high = min(high, _HEADROOM * start)
    # A band far below all medians is cut, rather than to press all curves into the upper part.
    bands = np.maximum(np.concatenate([c.low for c in curves]), floor)
    low = max(float(bands.min(initial=low)), low / (high / low) ** 0.15)
    return low / 1.2, high * 1.2


def label_ends(figure: Figure, axes: Axes, shown: Mapping[str, Look], ends: Mapping[str, float]) -> None:
    """Write each curve's name at its end; names that would overlap are moved apart."""
    low, high = axes.get_ylim()
    to_axes = axes.transData + axes.transAxes.inverted()
    notes, heights = {}, {}
    for name, look in shown.items():
        y = min(max(ends[name], low), high)
        heights[name] = float(to_axes.transform((0, y))[1])
        line = {"arrowstyle": "-", "color": look.color, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 0}
        notes[name] = axes.annotate(
            f"{name} ↑" if ends[name] > high else name,
            xy=(1.0, y),
            xycoords=("axes fraction", "data"),
            xytext=(_LABELS_AT, 0.5),
            textcoords="axes fraction",
            color=ink(look.color),
            fontsize=_FONT_SIZE,
            fontweight="bold" if look.strong else "normal",
            verticalalignment="center",
            annotation_clip=False,
            arrowprops={**line, "relpos": (0, 0.5)},
        )
    figure.draw_without_rendering()  # lays the figure out, so that the height of a name is known
    gap = 1.3 * _FONT_SIZE / 72 * figure.dpi / axes.get_window_extent().height
    names = sorted(heights, key=heights.__getitem__)
    for name, y in zip(names, spread([heights[n] for n in names], gap), strict=True):
        notes[name].set_position((_LABELS_AT, y))


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Move ascending positions apart to distances >= `gap`, by pooling adjacent violators."""
    blocks: list[tuple[float, int]] = []  # first position and size of each block of touching names
    for position in positions:
        block = (position, 1)
        while blocks and blocks[-1][0] + blocks[-1][1] * gap > block[0]:
            start, size = blocks.pop()
            total = size + block[1]
            block = ((start * size + (block[0] - size * gap) * block[1]) / total, total)
        blocks.append(block)
    return [start + k * gap for start, size in blocks for k in range(size)]
