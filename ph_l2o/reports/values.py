"""Numbers out of a result's files, where any can be absent; and as texts for people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

ABSENT = "–"
ABSENT_NUMBER = math.nan
Interval = tuple[float, float]


def get(node: Any, *keys: str) -> Any:
    """What nested mappings hold; None where a key is absent."""
    for key in keys:
        if not isinstance(node, Mapping):
            return None
        node = node.get(key)
    return node


def mapping(node: Any, *keys: str) -> Mapping[str, Any]:
    """A mapping; empty where there is none."""
    value = get(node, *keys)
    return value if isinstance(value, Mapping) else {}


def number(node: Any, *keys: str) -> float:
    """A number, also one that JSON has as the string "inf"; nan where there is none."""
    value = get(node, *keys)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return ABSENT_NUMBER
    try:
        return float(value)
    except (ValueError, OverflowError):
        return ABSENT_NUMBER


def interval(node: Any, *keys: str) -> Interval:
    """Both ends; nan where there is none."""
    ends = get(node, *keys)
    if not isinstance(ends, list) or len(ends) != 2:
        return ABSENT_NUMBER, ABSENT_NUMBER
    low, high = (number({"end": end}, "end") for end in ends)
    return low, high


def text(node: Any, *keys: str) -> str:
    """A text; empty where there is none."""
    value = get(node, *keys)
    return value if isinstance(value, str) else "" if value is None else str(value)


def show(value: float) -> str:
    """Three digits."""
    if math.isnan(value):
        return ABSENT
    return ("∞" if value > 0 else "−∞") if math.isinf(value) else f"{value:.3g}".replace("-", "−")


def show_interval(ends: Interval) -> str:
    """`[low, high]`; empty where there is none."""
    return "" if any(map(math.isnan, ends)) else f"[{show(ends[0])}, {show(ends[1])}]"


def with_interval(value: float, ends: Interval) -> str:
    """`value [low, high]`."""
    return f"{show(value)} {show_interval(ends)}".strip()


def inverse(value: float) -> float:
    """1 / value, for ratios, which are >= 0."""
    return math.inf if value == 0 else 1 / value
