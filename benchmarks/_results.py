"""A result file of `run.py`: what it must have."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCHEMA = 1
SUMMARY: dict[str, Any] = {"min": float, "median": float, "max": float, "values": list}
ENTRY: dict[str, Any] = {
    "name": str,
    "unit": str,
    "better": str,
    "is_reference": bool,
    "settings": dict,
    "warm_up_seconds": (float, type(None)),
    "ratios": dict,
    **SUMMARY,
}
GROUP: dict[str, Any] = {"about": str, "seconds": float, "entries": list, "skipped": dict, "error": (str, type(None))}
FILE: dict[str, Any] = {"schema": int, "machine": dict, "settings": dict, "groups": dict}
MACHINE: dict[str, Any] = {"words": str, "threads": (int, type(None)), "torch": str, "python": str}
SETTINGS: dict[str, Any] = {"repetitions": int, "quick": bool}


def load(path: Path) -> dict[str, Any]:
    """A result file, checked.

    Raises:
        ValueError: With one line that says what is wrong, if it is no such file.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ValueError(f"{path}: damaged, not JSON ({error})") from None
    try:
        check(content)
    except ValueError as error:
        raise ValueError(f"{path}: not a result of benchmarks/run.py ({error})") from None
    return content


def check(content: Any) -> None:
    """Raise ValueError with the first thing that is not as it must be."""
    _fields(content, FILE, "file")
    if content["schema"] != SCHEMA:
        raise ValueError(f"schema={content['schema']}: must be {SCHEMA}")
    _fields(content["machine"], MACHINE, "machine")
    _fields(content["settings"], SETTINGS, "settings")
    for name, group in content["groups"].items():
        _fields(group, GROUP, name)
        seen = set()
        for k, entry in enumerate(group["entries"]):
            _entry(entry, f"{name}.entries[{k}]")
            if entry["name"] in seen:
                raise ValueError(f"{name}.entries[{k}].name={entry['name']}: is there twice")
            seen.add(entry["name"])


def _entry(entry: Any, where: str) -> None:
    _fields(entry, ENTRY, where)
    if entry["better"] not in ("higher", "lower"):
        raise ValueError(f"{where}.better={entry['better']}: must be higher or lower")
    for label, summary in {where: entry, **{f"{where}.ratios.{k}": v for k, v in entry["ratios"].items()}}.items():
        _fields(summary, SUMMARY, label)
        values = [summary["min"], summary["median"], summary["max"], *summary["values"]]
        if not summary["values"] or not all(_is_a(v, float) and math.isfinite(v) for v in values):
            raise ValueError(f"{label}.values={summary['values']}: must be finite numbers, at least one")
        if not summary["min"] <= summary["median"] <= summary["max"]:
            raise ValueError(f"{label}.median={summary['median']}: must lie between min and max")


def _fields(content: Any, fields: Mapping[str, Any], where: str) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{where}: must be an object")
    for name, kind in fields.items():
        if name not in content:
            raise ValueError(f"{where}.{name}: is missing")
        if not _is_a(content[name], kind):
            raise ValueError(f"{where}.{name}={str(content[name])[:40]}: has the wrong type")


def _is_a(value: Any, kind: Any) -> bool:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, (*kinds, int) if float in kinds else kinds)
