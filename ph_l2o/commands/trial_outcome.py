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
    status: Any = read_status(folder) if folder is not None else {}
    kind, error = status.get("status"), status.get("error", "")
    if folder is not None and (kind == "ok" or _checkpoint_is(folder, done=True)):
        score = best_score(folder / LAST)
        return Outcome("ok", score if math.isfinite(score) else DIVERGED_SCORE)
    if kind == "diverged":
        return Outcome(kind, DIVERGED_SCORE, error)
    return Outcome("pruned" if kind == "pruned" else "error", error=error or "its process ended without a word")


def is_over(folder: Path | None) -> bool:
    """Whether a trial whose end nobody told has nothing left to do; one with an error has."""
    if folder is None:
        return False
    return read_status(folder).get("status") in ("ok", "pruned", "diverged") or _checkpoint_is(folder, done=True)


def unfinished_checkpoint(folder: Path | None) -> Path | None:
    """From where a trial that was stopped goes on; None if it begins anew."""
    return folder / LAST if folder is not None and _checkpoint_is(folder, done=False) else None


def _checkpoint_is(folder: Path, *, done: bool) -> bool:
    """Whether there is a last checkpoint, after which nothing is left to do, or something is."""
    config = saved_config(folder)
    if config is None or not (folder / LAST).is_file():
        return False
    trained = read_checkpoint(folder / LAST)[KEY]["outer_step"] >= config["meta"]["outer_steps"]
    return done == (trained and not config["compare"])
