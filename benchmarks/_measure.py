"""What the benchmarks share: interleaved repetitions, summaries, a table, a JSON file."""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ph_l2o.files import git_revision, json_text, write_atomically

Measurement = Callable[[], float]
Entry = dict[str, Any]
REFUSALS = (ValueError, NotImplementedError)  # what a combination raises that the package does not offer


@dataclass
class Found:
    """What a group measured.

    Attributes:
        entries: One for each measurement; docs/benchmarks.md has the fields.
        skipped: Why a measurement was not made, by its name.
    """

    entries: list[Entry] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def add(self, other: Found) -> None:
        """Take over what `other` has."""
        self.entries += other.entries
        self.skipped |= other.skipped


def contest(
    contestants: Mapping[str, Measurement],
    repetitions: int,
    *,
    unit: str,
    better: str = "higher",
    references: Collection[str] = (),
    settings: Mapping[str, Any] | None = None,
    warm_up: bool = True,
) -> Found:
    """Measure contestants in turns, after one call of each that warms up and does not count.

    Args:
        contestants: What measures one value, by name. One whose first call is refused is skipped.
        repetitions: Values of each, >= 1.
        unit: Of the values.
        better: `higher` or `lower`.
        references: Names among the contestants to which all others get ratios; the first is the one that
            `compare.py` judges.
        settings: What the contestants have in common.
        warm_up: Whether there is a first call; without one nothing is skipped.
    """
    found, warm = Found(), dict[str, float | None]()
    for name, measure in contestants.items():
        say(f"  {name}")
        warm[name] = None
        if not warm_up:
            continue
        began = time.perf_counter()
        try:
            measure()
        except REFUSALS as error:
            found.skipped[name] = str(error).partition("\n")[0]
            del warm[name]
            continue
        warm[name] = time.perf_counter() - began
    values = interleaved({name: contestants[name] for name in warm}, repetitions)
    for name in warm:
        found.entries.append(
            entry(name, values[name], unit=unit, better=better, settings=settings, warm_up_seconds=warm[name])
        )
        found.entries[-1]["is_reference"] = name in references
        if name not in references:
            others = [other for other in references if other in values]
            found.entries[-1]["ratios"] = {other: ratios(values[name], values[other]) for other in others}
    return found


def entry(
    name: str, values: Sequence[float], *, unit: str, better: str, settings: Mapping[str, Any] | None = None,
    warm_up_seconds: float | None = None,
) -> Entry:  # fmt: skip
    """One line of a result."""
    return {
        "name": name,
        "unit": unit,
        "better": better,
        "is_reference": False,
        "settings": dict(settings or {}),
        "warm_up_seconds": warm_up_seconds,
        **summary(values),
        "ratios": {},
    }


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


def number(value: float, digits: int = 3) -> str:
    """Rounded to `digits` significant digits."""
    return f"{float(f'{value:.{digits}g}'):,g}"


def spread(found: Mapping[str, Any], digits: int = 3) -> str:
    """`median (minimum – maximum)`."""
    median, low, high = (number(found[k], digits) for k in ("median", "min", "max"))
    return f"{median} ({low} – {high})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine(threads: int | None = None) -> dict[str, Any]:
    """Where the numbers come from."""
    import torch

    from ph_l2o.evaluation.result_files import machine_in_words, processor

    return {
        "words": machine_in_words(),
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def taken_up(path: Path | None, new: Mapping[str, Any]) -> dict[str, Any]:
    """What a result file has so far, or a `new` one, with what made it; of one thread."""
    before = json.loads(path.read_text()) if path and path.exists() else None
    return {**(before or new), **made_with(1, before)}


def made_with(threads: int | None = None, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What every result file says of itself: the command, the machine, the revision of the code, versions.

    Args:
        threads: Of torch.
        before: A result that is being completed; its revision stays beside today's.
    """
    from ph_l2o.evaluation.result_files import provenance

    now = revision()
    earlier = now if before is None else before.get("git_revision") or "unknown"
    now = earlier if now in earlier.split(", ") else f"{earlier}, {now}"
    return {**provenance(), "command": command(sys.argv), "machine": machine(threads), "git_revision": now}


def revision() -> str:
    """The commit, with `-dirty` where more is changed than docs: results are written there, one after the other."""
    found = git_revision() or "unknown"
    call = ["git", "diff", "--quiet", "HEAD", "--", ".", ":(exclude)docs", ":(exclude)README.md"]
    if found.endswith("-dirty") and subprocess.run(call, check=False).returncode == 0:
        return found.removesuffix("-dirty")
    return found


def command(argv: Sequence[str]) -> str:
    """A script's call as a reader would type it: without folders that only this machine has."""
    words, rest = ["python", f"benchmarks/{Path(argv[0]).name}"], iter(argv[1:])
    for word in rest:
        if word.partition("=")[0] in ("--data", "--cache"):
            if "=" not in word:
                next(rest, None)
            continue
        words.append(Path(word).name if os.path.isabs(word) else word)
    return shlex.join(words)


def say(text: str) -> None:
    """Progress, beside the tables on standard output."""
    print(text, file=sys.stderr, flush=True)


def write_json(path: Path | None, content: Mapping[str, Any], threads: int | None = 1) -> None:
    """Write a result and what it was made with, if there is a path; what `content` says of that stays."""
    if path is not None:
        write_atomically(path, json_text({**made_with(threads), **content}))
        say(f"written to {path}")
