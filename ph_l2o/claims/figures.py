"""A figure for each claim."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_figures(results: Mapping[str, Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write `study_<claim>.png` for each claim that has something to draw."""
    return []
