"""What `adversary.py` has found, in a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import _measure

VIOLATIONS = ("account_increased", "energy_exceeded", "outside_of_ball", "not_finite")


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each kind of part, with the worst of what was seen in it."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for name, row in rows.items():
        groups.setdefault(_kind(name), []).append(row)
    lines = []
    for name, found in groups.items():
        above, farthest = (max(row[key] for row in found) for key in ("most_above_account", "farthest"))
        least, skipped = min(row["least_account"] for row in found), sum(row["skipped"] for row in found)
        counts = f"{problem_steps(found):,}", f"{violations(found):,}"
        lines.append([name, *counts, f"{above:.1e}", f"{farthest:.5f}", f"{least:.3f}", f"{skipped:,}"])
    energies = "(H − E) / E₀, largest", "‖θ‖ / radius, largest", "E / E₀, least"
    return _measure.table(["", "problem-steps", "violations", *energies, "skipped steps"], lines)


def _kind(name: str) -> str:
    if name.startswith("drop-in, "):
        return name
    form = "Kronecker-factored" if name.startswith("kronecker, ") else "plain"
    what, *dtype = name.removeprefix("kronecker, ").split(", ")
    kind = "attack" if what == "attack" else "landscapes" if dtype else "tasks"
    return ", ".join([form, kind, *(dtype or ["float32"])])


def problem_steps(rows: Iterable[Mapping[str, Any]]) -> int:
    """Of all these parts."""
    return sum(row["problems"] * row["steps"] for row in rows)


def violations(rows: Iterable[Mapping[str, Any]]) -> int:
    """Of all these parts."""
    return sum(row[key] for row in rows for key in VIOLATIONS)
