"""Checks of arguments: one line that names the argument, its value, and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import Any

from ph_l2o.suggestions import did_you_mean


def at_least(name: str, value: Any, minimum: int, meaning: str) -> int:
    """The value as an int.

    Raises:
        ValueError: If it is not an integer, or below `minimum`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name}={value!r}: must be an integer >= {minimum} ({meaning})")
    if value < minimum:
        raise ValueError(f"{name}={value}: must be >= {minimum} ({meaning})")
    return int(value)


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint with the nearest valid names, and all of them."""
    names = list(valid)
    return f"{did_you_mean(name, names)} Valid names: {', '.join(names)}".removeprefix("; ").strip()
