"""Tables of a sweep: means over seeds with their intervals, and text that fits a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

SEED = "seed"
METRICS = ("val/score", "mean", "median", "geometric_mean", "iqm", "ratio")
_WIDTH = 80  # characters of a line
_WIDEST_CELL = 18
_OPTIONAL = ("mean", "val/score", "ratio", "seconds", "best_baseline", "median", "iqm", "geometric_mean", "diverged")
# Student's t at 0.975, by degrees of freedom from 1.
_T = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604, 2.1448,
    2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484,
    2.0452, 2.0423,
)  # fmt: skip


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of independent values, and the ends of its 95 % interval by Student's t; nan for the ends of one value.

    Args:
        values: At least one; where some are infinite, so are the mean and, with nan, the ends.

    Example:
        >>> [round(x, 3) for x in mean_interval([1.0, 2.0, 3.0])]
        [2.0, -0.484, 4.484]
    """
    n = len(values)
    mean = math.fsum(values) / n if all(map(math.isfinite, values)) else sum(values)
    if n < 2 or not math.isfinite(mean):
        return mean, math.nan, math.nan
    half = quantile(n - 1) * math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
    return mean, mean - half, mean + half


def quantile(degrees: int) -> float:
    """Student's t at 0.975, to four digits, for degrees of freedom >= 1."""
    if degrees <= len(_T):
        return _T[degrees - 1]
    z = 1.959964  # and the first terms of Cornish and Fisher's expansion
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def over_seeds(rows: Sequence[Row], swept: Sequence[str]) -> list[dict[str, Any]] | None:
    """Mean and 95 % interval of each metric over the seeds of each setting.

    Jobs that diverged, failed or are not there yet are counted, and left out of the means.

    Args:
        rows: Of all jobs, as in `summary.csv`.
        swept: The keys that differ between them.

    Returns:
        A row for each setting, in the order of the jobs, with columns such as `mean`, `mean_low` and `mean_high`; None
        where no seeds were swept.
    """
    if SEED not in swept:
        return None
    keys = [key for key in swept if key != SEED]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(key) for key in keys), []).append(row)
    return [_setting(dict(zip(keys, values, strict=True)), group) for values, group in groups.items()]


def _setting(values: dict[str, Any], group: Sequence[Row]) -> dict[str, Any]:
    good = [row for row in group if row.get("status") == "ok"]
    made = {**values, "seeds": len(group), "ok": len(good)}
    for metric in METRICS:
        found = [row[metric] for row in good if row.get(metric) is not None]
        if found:
            made[metric], low, high = mean_interval(found)
            made |= {f"{metric}_low": low, f"{metric}_high": high}
    return made


def jobs_table(rows: Sequence[Row], swept: Sequence[str]) -> str:
    """A line for each job, at most 80 characters wide: its number, what was swept, its status, what it reached."""
    columns = {"job": [row["job"].partition("_")[0] for row in rows]}
    columns |= {key: [_cell(row.get(key)) for row in rows] for key in swept}
    columns["status"] = [row["status"] for row in rows]
    return _fitted(columns, {name: [_cell(row.get(name)) for row in rows] for name in _OPTIONAL})


def seeds_table(settings: Sequence[Row]) -> str:
    """A line for each setting, at most 80 characters wide, with means over seeds and their 95 % intervals."""
    measured = {name for metric in METRICS for name in (metric, f"{metric}_low", f"{metric}_high")}
    keys = [key for key in dict.fromkeys(key for row in settings for key in row) if key not in measured]
    columns = {key: [_cell(row.get(key)) for row in settings] for key in keys}
    order = [name for name in _OPTIONAL if name in METRICS]
    return _fitted(columns, {metric: [_interval(row, metric) for row in settings] for metric in order})


def _interval(row: Row, metric: str) -> str:
    if row.get(metric) is None:
        return "-"
    low, high = row[f"{metric}_low"], row[f"{metric}_high"]
    return _cell(row[metric]) if math.isnan(low) else f"{row[metric]:.4g} [{low:.4g}, {high:.4g}]"


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split())


def _fitted(needed: Mapping[str, Sequence[str]], optional: Mapping[str, Sequence[str]]) -> str:
    """Lines of all that is needed, and of optional columns, in their order, those that fit and say something."""
    shown = {name: list(cells) for name, cells in zip(last_parts(list(needed)), needed.values(), strict=True)}
    if _width(shown) > _WIDTH:
        shown = {_cropped(name): [_cropped(cell) for cell in cells] for name, cells in shown.items()}
    while _width(shown) > _WIDTH and len(shown) > 2:
        del shown[list(shown)[-2]]  # the last one says how it ended
    for name, cells in optional.items():
        more = {**shown, name: list(cells)}
        if any(cell != "-" for cell in cells) and _width(more) <= _WIDTH:
            shown = more
    widths = [max(map(len, (name, *cells))) for name, cells in shown.items()]
    lines = [list(shown), *zip(*shown.values(), strict=True)]
    return "\n".join("  ".join(f"{c:>{w}}" for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _width(columns: Mapping[str, Sequence[str]]) -> int:
    return sum(max(map(len, (name, *cells))) for name, cells in columns.items()) + 2 * (len(columns) - 1)


def _cropped(text: str) -> str:
    return text if len(text) <= _WIDEST_CELL else f"{text[: _WIDEST_CELL - 1]}…"


def last_parts(keys: Sequence[str]) -> list[str]:
    """The last parts of keys, where these differ."""
    last = [key.rpartition(".")[2] for key in keys]
    return [end if last.count(end) == 1 else key for end, key in zip(last, keys, strict=True)]
