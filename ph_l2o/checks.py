"""Checks of arguments: one line that names the argument, its value, and what is allowed; hints for mistyped names."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Integral
from typing import Any


def at_least(name: str, value: Any, minimum: int, meaning: str) -> int:
    """The value as an int.

    Raises:
        ValueError: If it is not a whole number, or below `minimum`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name}={value!r}: must be a whole number >= {minimum} ({meaning})")
    if value < minimum:
        raise ValueError(f"{name}={value}: must be >= {minimum} ({meaning})")
    return int(value)


def number(
    name: str, value: Any, *, above: float = -math.inf, minimum: float = -math.inf, meaning: str | None = None
) -> float:
    """The value, if it is finite and in range; `above` itself is not allowed, `minimum` is.

    Raises:
        ValueError: If it is neither.
    """
    if not (above < value < math.inf and value >= minimum):
        bound = f">= {minimum:g}" if minimum > -math.inf else f"> {above:g}"
        raise ValueError(f"{name}={value}: must be {bound} and finite{f' ({meaning})' if meaning else ''}")
    return value


def one_of(name: str, value: Any, allowed: Iterable[str]) -> str:
    """The value, if it is one of the allowed names.

    Raises:
        ValueError: If it is not.
    """
    names = list(allowed)
    if value not in names:
        raise ValueError(f"{name}={value}: must be one of {', '.join(names)}{did_you_mean(value, names)}")
    return value


def did_you_mean(name: object, valid: Iterable[str], count: int = 3) -> str:
    """`; did you mean …?` with up to `count` of the nearest valid names, or nothing where none is near."""
    near = difflib.get_close_matches(str(name).lower(), list(valid), count)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint with the nearest valid names, and all of them."""
    names = list(valid)
    return f"{did_you_mean(name, names)} Valid names: {', '.join(names)}".removeprefix("; ").strip()
