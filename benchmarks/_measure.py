"""What the benchmark scripts share: interleaved repetitions, a table, a JSON file."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Measurement = Callable[[], float]


def interleaved(contestants: Mapping[str, Measurement], repetitions: int) -> dict[str, list[float]]:
    """Values of each contestant; each repetition measures all of them, in turns forwards and backwards.

    What slows the machine down for a while then meets all contestants alike.
    """
    values: dict[str, list[float]] = {name: [] for name in contestants}
    for repetition in range(repetitions):
        for name in list(contestants)[:: -1 if repetition % 2 else 1]:
            values[name].append(contestants[name]())
    return values


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Minimum, median and maximum, and the values in the order in which they were measured."""
    return {
        "min": min(values),
        "median": statistics.median(values),
        "max": max(values),
        "values": list(values),
    }


def ratios(values: Sequence[float], to: Sequence[float]) -> dict[str, Any]:
    """Ratios of what was measured in the same repetition."""
    return summary([a / b for a, b in zip(values, to, strict=True)])


def spread(found: Mapping[str, Any], digits: int = 3) -> str:
    """`median (minimum – maximum)`."""
    median, low, high = (f"{float(f'{found[k]:.{digits}g}'):,g}" for k in ("median", "min", "max"))
    return f"{median} ({low} – {high})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine(threads: int | None = None) -> dict[str, Any]:
    """Where the numbers come from."""
    import torch

    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def write_json(path: Path | None, content: Mapping[str, Any]) -> None:
    """Write a result, if there is a path."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n")
        print(f"\nwritten to {path}")
