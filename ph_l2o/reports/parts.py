"""The parts of a page: tables, charts, texts. What they say is plain text and numbers."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ph_l2o.palette import Look
from ph_l2o.reports.values import Interval, show, with_interval


class Bar(NamedTuple):
    """A value and its interval on an axis from 0 to 1; `one` is where the ratio 1 lies."""

    at: float
    low: float
    high: float
    one: float


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: What is shown.
        order: What rows are sorted by: a number, or a text; None comes last.
        look: Of the optimizer whose name it is.
        bar: Drawn under the text.
        mark: `best` or `worse`; `long` or `left` of texts.
        link: To a file beside the page.
    """

    text: str
    order: float | str | None = None
    look: Look | None = None
    bar: Bar | None = None
    mark: str = ""
    link: str = ""

    @property
    def sort(self) -> str:
        """As an attribute."""
        unsorted = self.order is None or (isinstance(self.order, float) and math.isnan(self.order))
        return "" if unsorted else "Infinity" if self.order == math.inf else str(self.order)


@dataclass(frozen=True)
class Column:
    """A column: its header, what the header means, and whether it holds numbers."""

    name: str
    help: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """A table whose rows can be sorted by each column; columns in which no row has anything are left out."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    kind: str = "table"

    @property
    def shown(self) -> list[int]:
        """Numbers of the columns that hold something."""
        return [k for k in range(len(self.columns)) if any(row[k].text not in ("", "–") for row in self.rows)]


@dataclass(frozen=True)
class Line:
    """A curve: values at the chart's places; nan where there is none."""

    name: str
    look: Look
    values: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Chart:
    """Curves over the same places.

    Attributes:
        title: Of the chart.
        alt: What it shows, in words.
        xlabel: Of the horizontal axis, with units.
        ylabel: Of the vertical axis, with units.
        x: Places, ascending.
        lines: The curves.
        log: Whether the vertical axis is logarithmic.
        limits: Of the vertical axis; None: what the curves need.
        xlog: Whether the horizontal axis is logarithmic.
    """

    title: str
    alt: str
    xlabel: str
    ylabel: str
    x: Sequence[float]
    lines: Sequence[Line]
    log: bool = False
    limits: tuple[float, float] | None = None
    xlog: bool = False

    def data(self) -> dict[str, Any]:
        """For the script."""
        return {
            "title": self.title,
            "alt": self.alt,
            "xlabel": self.xlabel,
            "ylabel": self.ylabel,
            "log": self.log,
            "xlog": self.xlog,
            "limits": self.limits,
            "x": _plain(self.x),
            "lines": [
                {
                    "name": line.name,
                    **line.look._asdict(),
                    "values": _plain(line.values, above_zero=self.log),
                    "low": _plain(line.low, above_zero=self.log),
                    "high": _plain(line.high, above_zero=self.log),
                }
                for line in self.lines
            ],
        }


def _plain(values: Sequence[float], *, above_zero: bool = False) -> list[float | None]:
    return [float(f"{v:.5g}") if math.isfinite(v) and (v > 0 or not above_zero) else None for v in values]


@dataclass(frozen=True)
class Charts:
    """Charts of the same curves, with one legend whose buttons show and hide them."""

    charts: Sequence[Chart]
    note: str = ""
    kind: str = "charts"

    @property
    def legend(self) -> dict[str, Look]:
        """The curves by name, in their order; none where no chart has several."""
        if all(len(chart.lines) <= 1 for chart in self.charts):
            return {}
        return {line.name: line.look for chart in self.charts for line in chart.lines}


@dataclass(frozen=True)
class Picture:
    """A PNG file's content, with what it shows in words."""

    png: bytes
    alt: str
    kind: str = "picture"

    @property
    def source(self) -> str:
        """As a URL of its content."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Facts:
    """Names and what they are."""

    facts: Sequence[tuple[str, str]]
    kind: str = "facts"


@dataclass(frozen=True)
class Sentences:
    """A list of sentences."""

    sentences: Sequence[str]
    kind: str = "sentences"


@dataclass(frozen=True)
class Commands:
    """What to type, line by line."""

    lines: Sequence[str]
    kind: str = "commands"


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading; a folded one opens on a click."""

    title: str
    parts: Sequence[Any]
    lead: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Page:
    """A whole page."""

    title: str
    subtitle: str
    verdict: Sequence[str]
    sections: Sequence[Section] = field(default_factory=tuple)


def interval_cell(value: float, ends: Interval, look: Look | None = None) -> Cell:
    """A number with its interval."""
    return Cell(with_interval(value, ends), value, look)


def number_cell(value: float, *, scale: float = 1.0) -> Cell:
    """A number."""
    return Cell(show(value * scale), value)


def log_places(values: Mapping[Any, tuple[float, Interval]]) -> dict[Any, Bar]:
    """Bars of ratios on one logarithmic axis that shows them all, and 1; at most from 1/50 to 50."""
    finite = [v for point, ends in values.values() for v in (point, *ends) if 0 < v < math.inf]
    low, high = (min([0.8, *finite]), max([1.25, *finite]))
    low, high = max(low, 0.02), min(high, 50.0)
    width = math.log(high / low)

    def place(value: float) -> float:
        inside = min(max(value, low), high)
        return round(0.04 + 0.92 * math.log(inside / low) / width, 4)

    return {
        key: Bar(place(point), place(ends[0]), place(ends[1]), place(1.0))
        for key, (point, ends) in values.items()
        if not any(map(math.isnan, (point, *ends)))
    }
