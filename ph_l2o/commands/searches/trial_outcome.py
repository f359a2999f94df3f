"""What the folder of a trial says of how it ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ph_l2o.commands.recording import DIVERGED_SCORE, read_status, reason_of


class Outcome(NamedTuple):
    """How a trial ended.

    Attributes:
        status: `ok`, `diverged`, `pruned` or `error`.
        score: `val/score` of the best checkpoint, of those that are `ok`; a large one of those that diverged.
        error: What went wrong.
    """

    status: str
    score: float | None = None
    error: str = ""


def outcome_of(folder: Path | None) -> Outcome:
    """How a trial that was launched ended; one whose process was killed, or asked to end, has an error."""
    status: Any = read_status(folder) if folder is not None else {}
    kind, error = status.get("status"), status.get("error", "")
    if kind == "ok":
        return Outcome(kind, float(status["score"]))
    if kind == "diverged":
        return Outcome(kind, DIVERGED_SCORE, error)
    if kind == "pruned":
        return Outcome(kind)
    return Outcome("error", error=error or reason_of(kind) or str(reason_of("killed")))
