"""Read a folder's results. Nothing in them is executed; what is damaged is named in one line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ph_l2o.errors import ReportError

Rows = list[dict[str, str]]


def read_json(path: Path) -> dict[str, Any] | None:
    """A mapping; None if there is no such file.

    Raises:
        ReportError: If it can't be read, or holds something else.
    """
    if (content := _text(path)) is None:
        return None
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(found, dict):
        raise _damaged(path, "it holds no mapping")
    return found


def read_results(path: Path, *names: str) -> dict[str, Any] | None:
    """As `read_json`, with rows of which each has these texts.

    Raises:
        ReportError: If it has none.
    """
    found = read_json(path)
    if found is not None:
        rows = found.get("rows")
        if not isinstance(rows, list) or not rows:
            raise _damaged(path, "it has no rows")
        for row in rows:
            for name in names:
                if not isinstance(row, dict) or not isinstance(row.get(name), str):
                    raise _damaged(path, f"a row has no {name}")
    return found


def read_csv(path: Path, *columns: str) -> Rows:
    """Rows of a table with these columns; a last row that is not whole is left out. Empty if there is no such file.

    Raises:
        ReportError: If it can't be read, or lacks a column.
    """
    if (content := _text(path)) is None:
        return []
    try:
        reader = csv.DictReader(io.StringIO(content, newline=""))
        found = list(reader)
    except csv.Error as error:
        raise _damaged(path, str(error)) from error
    names = reader.fieldnames or []
    if lacking := [c for c in columns if c not in names]:
        raise _damaged(path, f"it has no column {lacking[0]}")
    if found and None in found[-1].values():  # as of a process that was killed
        found.pop()
    if any(None in row or None in row.values() for row in found):
        raise _damaged(path, "a row has more or fewer values than there are columns")
    return found


def read_yaml(path: Path) -> dict[str, Any] | list[Any] | None:
    """Plain values; None if there is no such file.

    Raises:
        ReportError: If it can't be read, or holds neither a mapping nor a list.
    """
    import yaml

    if (content := _text(path)) is None:
        return None
    try:
        found = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _damaged(path, " ".join(str(error).split())[:200]) from error
    if not isinstance(found, dict | list):
        raise _damaged(path, "it holds neither a mapping nor a list")
    return found


def read_mapping(path: Path) -> dict[str, Any]:
    """As `read_yaml`, of a mapping; empty if there is no such file."""
    found = read_yaml(path)
    if isinstance(found, list):
        raise _damaged(path, "it holds no mapping")
    return found or {}


def leaves(node: Mapping[Any, Any], above: str = "") -> dict[str, Any]:
    """The values of nested mappings, by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        place = f"{above}{key}"
        found |= leaves(value, f"{place}.") if isinstance(value, Mapping) and value else {place: value}
    return found


def _text(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        return path.read_text()
    except UnicodeDecodeError as error:
        raise _damaged(path, "it is no text") from error
    except OSError as error:
        raise ReportError(f"{path}: can't be read ({error.strerror})") from error


def _damaged(path: Path, why: str) -> ReportError:
    return ReportError(f"{path}: is damaged ({why}); put a good copy in its place, or run again")
