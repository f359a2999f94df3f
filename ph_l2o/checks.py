"""Checks of arguments: one line that names the argument, its value, and what is allowed; hints for mistyped names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from numbers import Integral
from typing import Any


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


def did_you_mean(name: object, valid: Iterable[str], count: int = 3) -> str:
    """`; did you mean …?` with up to `count` of the nearest valid names, or nothing where none is near."""
    near = difflib.get_close_matches(str(name).lower(), list(valid), count)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint with the nearest valid names, and all of them."""
    names = list(valid)
    return f"{did_you_mean(name, names)} Valid names: {', '.join(names)}".removeprefix("; ").strip()
