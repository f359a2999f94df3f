"""What got slower, faster, or uses more memory between two results of `benchmarks/run.py`.

python benchmarks/compare.py old.json new.json

An entry has changed beyond noise if the ranges [min, max] of its repetitions do not overlap and its medians differ by
more than the threshold (default 10 %). Where both files have the entry's ratio to the same reference, measured in turns
with it, ratios are compared instead, because a machine's mood cancels out of them. An entry that has a single value in
either file has no range, so its medians must differ by three times the threshold; memory must differ by 2 MiB, too.
References are not judged.

Exit status: 0 if nothing got worse, 1 if something did, 2 if a file cannot be compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _measure import Entry, spread, table
from _results import load

THRESHOLD = 0.1
SINGLE = 3  # factor of the threshold where there is no range
LEAST_MIB = 2.0  # pages that the allocator happens to take
Result = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """An entry that both files have.

    Attributes:
        group: Its group.
        name: Its name.
        unit: Of what is compared; `× reference` for ratios.
        old: Summary in the old file.
        new: Summary in the new file.
        gain: By how much it is better, as a factor of the median: above 1 better, below 1 worse.
        is_noise: Whether the difference is within noise.
    """

    group: str
    name: str
    unit: str
    old: Mapping[str, Any]
    new: Mapping[str, Any]
    gain: float
    is_noise: bool

    @property
    def verdict(self) -> str:
        """`same`, or in words what it is."""
        if self.is_noise:
            return "same"
        if self.unit == "MiB":
            return "less memory" if self.gain > 1 else "more memory"
        return "faster" if self.gain > 1 else "slower"

    def row(self) -> tuple[str, ...]:
        """A line of the table."""
        factor = self.new["median"] / self.old["median"] if self.old["median"] else float("inf")
        what = f"{100 * (factor - 1):+.0f} %"
        return f"{self.group}: {self.name}", spread(self.old), spread(self.new), self.unit, what, self.verdict


def change(group: str, old: Entry, new: Entry, threshold: float) -> Change:
    """Compare an entry of both files."""
    before, after, unit = compared(old, new)
    low, high = sorted((float(before["median"]), float(after["median"])))
    factor = high / low if low > 0 else float("inf") if high > 0 else 1.0
    is_better = (after["median"] > before["median"]) == (new["better"] == "higher")
    single = min(len(before["values"]), len(after["values"])) < 2
    overlap = before["min"] <= after["max"] and after["min"] <= before["max"]
    needed = 1 + threshold * (SINGLE if single else 1)
    is_noise = overlap or factor <= needed or (unit == "MiB" and high - low < LEAST_MIB)
    return Change(group, new["name"], unit, before, after, factor if is_better else 1 / factor, is_noise)


def compared(old: Entry, new: Entry) -> tuple[Mapping[str, Any], Mapping[str, Any], str]:
    """What to compare: the ratios to the first reference in common, or the values themselves, and their unit."""
    for reference, ratios in new["ratios"].items():
        if reference in old["ratios"]:
            return old["ratios"][reference], ratios, f"× {reference}"
    return old, new, new["unit"]


def entries(result: Result) -> dict[tuple[str, str], Entry]:
    """All entries by group and name."""
    return {(name, e["name"]): e for name, group in result["groups"].items() for e in group["entries"]}


def warnings(old: Result, new: Result) -> list[str]:
    """What makes the two files differ besides the code."""
    found = []
    for key, what in (("words", "machine"), ("threads", "threads"), ("torch", "torch"), ("python", "Python")):
        a, b = old["machine"][key], new["machine"][key]
        if a != b:
            found.append(f"{what}: {a} in the old file, {b} in the new one; trust ratios only")
    for which, result in (("old", old), ("new", new)):
        if result["settings"]["quick"]:
            found.append(f"the {which} file is of a --quick run, whose numbers mean nothing")
        for name, group in result["groups"].items():
            if group["error"]:
                found.append(f"{name} failed in the {which} file: {group['error']}")
    before, after = entries(old), entries(new)
    for key in before.keys() & after.keys():
        if before[key]["settings"] != after[key]["settings"] or before[key]["unit"] != after[key]["unit"]:
            found.append(f"{': '.join(key)}: other settings or unit, not compared")
    return sorted(found)


def changes(old: Result, new: Result, threshold: float) -> list[Change]:
    """All entries that can be compared, those that got worse first."""
    before, after = entries(old), entries(new)
    found = [
        change(key[0], before[key], after[key], threshold)
        for key in after
        if key in before
        and not after[key]["is_reference"]
        and (before[key]["settings"], before[key]["unit"]) == (after[key]["settings"], after[key]["unit"])
    ]
    return sorted(found, key=lambda c: c.gain)


def report(old: Result, new: Result, threshold: float, *, everything: bool = False) -> bool:
    """Print the comparison; whether something got worse."""
    for line in warnings(old, new):
        print(f"warning: {line}")
    found = changes(old, new, threshold)
    shown = found if everything else [c for c in found if not c.is_noise]
    if shown:
        print(table(("entry", "old", "new", "unit", "change", "verdict"), [c.row() for c in shown]))
    before, after = entries(old), entries(new)
    for title, keys in (("missing", before.keys() - after.keys()), ("new", after.keys() - before.keys())):
        for key in sorted(keys):
            why = new["groups"].get(key[0], {}).get("skipped", {}).get(key[1]) if title == "missing" else None
            print(f"{title}: {': '.join(key)}" + (f" ({why})" if why else ""))
    worse = [c for c in found if not c.is_noise and c.gain < 1]
    better = sum(not c.is_noise and c.gain > 1 for c in found)
    print(
        f"{len(found)} entries compared: {len(worse)} worse, {better} better, {sum(c.is_noise for c in found)} within "
        f"noise (ranges overlap, or medians within {100 * threshold:g} %)"
    )
    return bool(worse)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare two files; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="result before")
    parser.add_argument("new", type=Path, help="result after")
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help="of the medians, > 0 (default: 0.1)")
    parser.add_argument("--all", action="store_true", help="show what is within noise, too")
    arguments = parser.parse_args(argv)
    if not 0 < arguments.threshold < float("inf"):
        parser.error(f"--threshold {arguments.threshold}: must be > 0 and finite")
    try:
        old, new = load(arguments.old), load(arguments.new)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return int(report(old, new, arguments.threshold, everything=arguments.all))


if __name__ == "__main__":
    raise SystemExit(main())
