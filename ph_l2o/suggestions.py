"""Hints for mistyped names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: object, valid: Iterable[str], count: int = 3) -> str:
    """`; did you mean …?` with up to `count` of the nearest valid names, or nothing where none is near."""
    near = difflib.get_close_matches(str(name).lower(), list(valid), count)
    return f"; did you mean {' or '.join(near)}?" if near else ""
