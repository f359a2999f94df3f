"""What a search has found: `study.csv` with all trials, a picture, and how to train as the best trial did."""

from __future__ import annotations

import logging
import os
import shlex
from collections import Counter
from typing import TYPE_CHECKING, Any

from ph_l2o.commands import reporting
from ph_l2o.commands.recording import DIVERGED_SCORE, read_status
from ph_l2o.commands.searches.search_space import typed_value
from ph_l2o.files import csv_text, write_atomically
from ph_l2o.lazy import resolve

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from ph_l2o.commands.searches.study import SharedStudy

log = logging.getLogger(__name__)

_STATUS, _SCORE = "status", "val/score"


def report(shared: SharedStudy, *, aloud: bool = False) -> None:
    """Write `study.csv`; at the end also `study.png`, and tell the best trial.

    Args:
        shared: The study.
        aloud: Whether this is the end.
    """
    trials = shared.study.get_trials(deepcopy=False)
    rows = [_row(shared, trial) for trial in trials]
    write_atomically(shared.folder / "study.csv", csv_text(rows))
    if aloud:
        _tell(shared, trials, rows)


def _row(shared: SharedStudy, trial: FrozenTrial) -> dict[str, Any]:
    folder = shared.folder_of(trial.number)
    recorded: Any = read_status(folder) if folder is not None else {}
    status = trial.user_attrs.get(_STATUS) or recorded.get("status", "running")
    return {
        "trial": trial.number,
        _STATUS: status,
        _SCORE: trial.value,
        **trial.params,
        "seconds": recorded.get("seconds"),
        "folder": folder.name if folder is not None else None,
        "error": trial.user_attrs.get("error"),
    }


def _tell(shared: SharedStudy, trials: list[FrozenTrial], rows: list[dict[str, Any]]) -> None:
    """The best trial, and where the others are to be found."""
    counts = Counter(row[_STATUS] for row in rows)
    told = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    place = os.path.relpath(shared.folder)
    found = [t for t in trials if t.user_attrs.get(_STATUS) == "ok" and (t.value or 0.0) < DIVERGED_SCORE]
    if not found:
        log.info("none of %d trials (%s) has a finite score; all are in %s", len(rows), told, f"{place}/study.csv")
        return
    best = min(found, key=lambda t: (t.value, t.number))
    settings = [typed_value(key, value) for key, value in best.params.items()]
    draw = resolve("ph_l2o.commands.searches.study_plot:draw")
    write_atomically(shared.folder / "study.png", draw(trials, shared.space.varied))
    log.info("%d trials: %s", len(rows), told)
    log.info(
        "best: trial %d, val/score=%.6g, with %s, in %s",
        best.number,
        best.value,
        " ".join(settings),
        rows[best.number]["folder"],
    )
    log.info("train like it: %s", shlex.join(["python", "train.py", *_fixed(shared), *settings]))
    log.info("all trials: %s, %s", f"{place}/study.csv", "study.png beside it")
    reporting.report(shared.folder)


def _fixed(shared: SharedStudy) -> list[str]:
    """What was typed of the settings that all trials share."""
    return [override for key, override in shared.space.fixed.items() if key != "hparams_search"]
