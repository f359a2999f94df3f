"""docs/study.md, made of the result files alone."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ph_l2o.claims.verdicts import RULES, number, sentence, verdict
from ph_l2o.errors import ReportError
from ph_l2o.files import write_atomically

ORDER = ("saddles", "quadratic", "mnist", "relu_transfer", "generalisation", "horizon", "structure")

Results = Mapping[str, Mapping[str, Any]]  # by claim


def load_results(folder: Path) -> dict[str, dict[str, Any]]:
    """The result files of a folder, in the order of the page.

    Raises:
        ReportError: If one is damaged.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            found[path.stem] = json.loads(path.read_text())
            _ = found[path.stem]["measurements"], found[path.stem]["contrasts"]
        except (ValueError, KeyError, TypeError) as error:
            raise ReportError(f"{path}: is damaged ({error}); put a good copy in its place, or run again") from error
    return {name: found[name] for name in sorted(found, key=_place)}


def _place(name: str) -> tuple[int, str]:
    return (ORDER.index(name), "") if name in ORDER else (len(ORDER), name)


def write_page(results: Results, docs: Path) -> Path:
    """Write `study.md`."""
    return write_atomically(docs / "study.md", page(results))


def page(results: Results) -> str:
    parts = ["# The published study, settled", RULES]
    for result in results.values():
        labels = {row: content["label"] for m in result["measurements"].values() for row, content in m["rows"].items()}
        parts += [f"## {result['title']}", f"**{verdict(result['contrasts'])}**"]
        parts.append("\n".join(f"- {sentence(c, labels)}" for c in result["contrasts"]))
        parts += [
            json.dumps({k: number(v["mean"]["value"]) for k, v in m["rows"].items()})
            for m in result["measurements"].values()
        ]
    return "\n\n".join(parts) + "\n"
