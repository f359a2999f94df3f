"""Charts of learning curves, out of the files that hold what is drawn."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ph_l2o.palette import Look
from ph_l2o.reports.files import Rows, read_csv
from ph_l2o.reports.parts import Chart, Charts, Line, Picture
from ph_l2o.reports.values import number

_COLUMNS = ("optimizer", "step", "median", "low", "high")
_MAX_BANDS = 3  # more would hide each other
_HEADROOM = 3.0  # a diverging curve may rise this far above the highest start before it leaves the chart
_PICTURE_BYTES = 1_500_000


def learning_curves(path: Path, looks: Mapping[str, Look], *, by_task: bool = False) -> Charts | None:
    """One chart, or one for each task; None if there is no such file.

    Args:
        path: A file of `ph_l2o.evaluation.drawn_curves`.
        looks: Of the optimizers, which are drawn in this order.
        by_task: Whether the first column is the task.
    """
    rows = read_csv(path, *(("task", *_COLUMNS) if by_task else _COLUMNS))
    tasks = dict.fromkeys(row["task"] if by_task else "" for row in rows)
    charts = [_chart([r for r in rows if not by_task or r["task"] == task], looks, task) for task in tasks]
    note = (
        "Each curve is the median over test problems, a band the quartiles around it. Of 200 steps or more, both are "
    )
    note += (
        "running means over a fiftieth of them. Press a name to hide or show it; drag over a part to enlarge it, and "
    )
    note += "double-click to go back; arrow keys read the values."
    return Charts(charts, note) if charts else None


def _chart(rows: Rows, looks: Mapping[str, Look], task: str) -> Chart:
    by_name = {name: [r for r in rows if r["optimizer"] == name] for name in looks}
    by_name = {name: found for name, found in by_name.items() if found}
    steps = sorted({number(row, "step") for row in rows})
    banded = [n for n in by_name if looks[n].strong] if len(by_name) > _MAX_BANDS else list(by_name)
    lines = []
    for name, found in by_name.items():
        at = {number(row, "step"): row for row in found}
        median, low, high = ([number(at.get(s), k) for s in steps] for k in ("median", "low", "high"))
        lines.append(Line(name, looks[name], median, *((low, high) if name in banded else ())))
    chart = chart_of(task or "Median loss", steps, lines, "inner step", "loss")
    return dataclasses.replace(chart, limits=limits_of(lines, log=chart.log)) if chart.limits else chart


def chart_of(
    title: str, x: Sequence[float], lines: Sequence[Line], xlabel: str, ylabel: str, *, log: bool = True
) -> Chart:
    """A chart that shows all values, on a logarithmic axis if `log` asks for it and all are above 0."""
    values = [v for line in lines for v in line.values if math.isfinite(v)]
    log = log and bool(values) and min(values) > 0
    ends = ", ".join(f"{line.name} {_last(line.values):.3g}" for line in lines)
    alt = f"{title}: {ylabel} against {xlabel}. At the end: {ends}. Arrow keys read the values."
    limits = None
    if values:
        low, high = min(values), max(values)
        margin = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
        limits = (low / 1.2, high * 1.2) if log else (low - margin, high + margin)
    return Chart(title, alt, xlabel, ylabel, x, lines, log, limits)


def limits_of(lines: Sequence[Line], *, log: bool) -> tuple[float, float]:
    """Limits that show all curves, but of a diverging one only its beginning, and of bands what lies near."""
    values = [v for line in lines for v in line.values if math.isfinite(v) and (v > 0 or not log)]
    starts = [v for line in lines for v in line.values[:1] if math.isfinite(v)]
    low, high = min(values), max(values)
    start = max(starts, default=high)
    if not log:
        high = min(high, start + max(start - low, 1e-12)) if starts else high
        margin = 0.05 * max(high - low, abs(high) * 1e-3, 1e-12)
        return low - margin, high + margin
    tops = [v for line in lines for v in line.high[:1] if math.isfinite(v)]
    high = max(min(max([high, *tops]), _HEADROOM * start), low)
    return low / 1.25, high * 1.2


def _last(values: Sequence[float]) -> float:
    return values[-1] if values else math.nan


def pictures(folder: Path, alts: Mapping[str, str]) -> list[Picture]:
    """Those files that are there and not too large for a page, with what they show."""
    found = []
    for name, alt in alts.items():
        path = folder / name
        if path.is_file() and path.stat().st_size <= _PICTURE_BYTES:
            found.append(Picture(path.read_bytes(), alt))
    return found


def curves_or_picture(charts: Charts | None, folder: Path, name: str, alt: str) -> list[Any]:
    """The charts; of results that have no file of curves, the picture."""
    return [charts] if charts else [*pictures(folder, {name: alt})]
