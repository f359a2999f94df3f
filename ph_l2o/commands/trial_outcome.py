"""What the folder of a trial says of how it ended, or of how far it came."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from ph_l2o.checkpoints import KEY, read_checkpoint
from ph_l2o.commands.folders import LAST
from ph_l2o.commands.recording import DIVERGED_SCORE, read_status, saved_config
from ph_l2o.commands.validate import best_score


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
    """How a trial that was launched ended; one whose process was killed has an error."""
    if folder is None:
        return Outcome("error", error="its process ended without a word")
    status: Any = read_status(folder)
    kind, error = status.get("status"), status.get("error", "")
    if kind == "ok" or _is_complete(folder, kind):
        score = best_score(folder / LAST)
        return Outcome("ok", score if math.isfinite(score) else DIVERGED_SCORE)
    if kind == "diverged":
        return Outcome(kind, DIVERGED_SCORE, error)
    return Outcome("pruned" if kind == "pruned" else "error", error=error or "its process ended without a word")


def is_over(folder: Path | None) -> bool:
    """Whether a trial whose end nobody told has nothing left to do; one with an error has."""
    if folder is None:
        return False
    kind = read_status(folder).get("status")
    return kind in ("ok", "pruned", "diverged") or _is_complete(folder, kind)


def unfinished_checkpoint(folder: Path | None) -> Path | None:
    """From where a trial that was stopped goes on; None if it begins anew."""
    return folder / LAST if folder is not None and _trained(folder) is False else None


def _is_complete(folder: Path, kind: str | None) -> bool:
    """Whether a trial was stopped when all was done, but for saying so."""
    return kind in ("running", "interrupted") and _trained(folder) is True


def _trained(folder: Path) -> bool | None:
    """Whether there is a last checkpoint after which nothing is left to do; None if there is none."""
    config = saved_config(folder)
    if config is None or not (folder / LAST).is_file():
        return None
    outer_step = read_checkpoint(folder / LAST)[KEY]["outer_step"]
    return outer_step >= config["meta"]["outer_steps"] and not config["compare"]
