"""A comparison as a table for people."""

from __future__ import annotations

import html
import math
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

_ABSENT = "–"


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return _ABSENT
    return f"{value:.3g}"


def _difference(row: Row) -> str:
    difference = row["difference_to_best_baseline"]
    return _ABSENT if difference is None else _interval(difference)


def _interval(difference: Mapping[str, Any]) -> str:
    low, high = difference["ci95"]
    return f"{difference['mean']:+.3g} [{low:+.3g}, {high:+.3g}]" if difference["mean"] or low or high else "0"


def _final(name: str) -> Callable[[Row], str]:
    return lambda row: _number(row["final"][name])


def _at(name: str) -> Callable[[Row], str]:
    return lambda row: _number(row[name])


_COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("optimizer", lambda row: row["optimizer"]),
    ("lr", _at("learning_rate")),
    ("schedule", lambda row: row["schedule"] or _ABSENT),
    ("mean", _final("mean")),
    ("median", _final("median")),
    ("geo. mean", _final("geometric_mean")),
    ("IQM", _final("iqm")),
    ("difference [95 %]", _difference),
    ("last 10", _at("last10_mean")),
    ("all", _at("all_mean")),
    ("diverged", lambda row: str(row["diverged"])),
    ("accuracy", _at("accuracy")),
    ("test loss", _at("test_loss")),
    ("ms/step", lambda row: _number(1e3 * row["step_seconds"])),
)


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headers and texts of the columns in which any row has something."""
    texts = [[text(row) for _, text in _COLUMNS] for row in rows]
    kept = [k for k in range(len(_COLUMNS)) if any(line[k] != _ABSENT for line in texts)]
    return [_COLUMNS[k][0] for k in kept], [[line[k] for k in kept] for line in texts]


# The most important first: those that a terminal has room for are shown.
_ORDER = (
    "optimizer", "mean", "difference [95 %]", "diverged", "lr", "ms/step", "accuracy", "median", "schedule",
    "test loss", "last 10", "all", "geo. mean", "IQM",
)  # fmt: skip


def plain_table(rows: Sequence[Row]) -> str:
    """Aligned columns, names to the left, numbers to the right, as many as the terminal has room for."""
    return fitted(*cells(rows), _ORDER)


def paired_table(rows: Sequence[Row]) -> str:
    """Paired differences of each learned optimizer to each baseline; empty where there is nothing to compare."""
    header = ["paired difference [95 %]", "final", "last 10", "all"]
    lines = [
        [f"{row['optimizer']} - {baseline}", *(_interval(measures[what]) for what in ("final", "last10", "all"))]
        for row in rows
        for baseline, measures in (row["paired_differences"] or {}).items()
    ]
    return fitted(header, lines, header) if lines else ""


def terminal_width() -> int:
    """Characters of a line: the terminal's, or 80."""
    return max(40, shutil.get_terminal_size((80, 24)).columns)


def fitted(header: list[str], lines: list[list[str]], order: Sequence[str]) -> str:
    """A table of those columns for which the terminal has room, and a line that names the others.

    Args:
        header: Names of the columns.
        lines: Texts, line by line.
        order: Names of all columns, the most important first; the first is always shown.
    """
    widths = {name: max(len(name), *(len(line[k]) for line in lines)) for k, name in enumerate(header)}
    kept, room = list[str](), terminal_width() + 2
    for name in order:
        if name in widths and (not kept or widths[name] + 2 <= room):
            kept.append(name)
            room -= widths[name] + 2
    places = [k for k, name in enumerate(header) if name in kept]
    table = aligned([header[k] for k in places], [[line[k] for k in places] for line in lines])
    left_out = [name for name in header if name not in kept]
    if not left_out:
        return table
    note = f"not shown, for want of room: {', '.join(left_out)}"
    return f"{table}\n{textwrap.fill(note, terminal_width())}"


def wrapped(header: list[str], lines: list[list[str]]) -> str:
    """A table in as many parts, below each other, as the terminal asks for; each begins with the first column."""
    widths = [max(len(name), *(len(line[k]) for line in lines)) for k, name in enumerate(header)]
    parts: list[list[int]] = []
    room = 0
    for k in range(1, len(header)):
        if widths[k] + 2 > room:
            parts.append([0])
            room = terminal_width() - widths[0]
        parts[-1].append(k)
        room -= widths[k] + 2
    return "\n\n".join(aligned([header[k] for k in p], [[line[k] for k in p] for line in lines]) for p in parts)


def aligned(header: list[str], lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]

    def line(texts: Sequence[str]) -> str:
        padded = [f"{t:<{w}}" if k == 0 else f"{t:>{w}}" for k, (t, w) in enumerate(zip(texts, widths, strict=True))]
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), "  ".join("-" * w for w in widths), *map(line, lines)])


def html_table(title: str, rows: Sequence[Row]) -> str:
    """The same for notebooks."""
    import pandas as pd

    header, lines = cells(rows)
    return f"<p>{html.escape(title)}</p>{pd.DataFrame(lines, columns=header).to_html(index=False)}"
