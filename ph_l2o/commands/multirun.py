"""Sweeps: a job that fails is recorded and the others run; a table of all jobs at the end."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from ph_l2o.commands.recording import DIVERGED_SCORE, read_status, write_status
from ph_l2o.files import write_atomically

log = logging.getLogger(__name__)

_TOLERANCE = "max_failure_rate"  # of sweepers that count failures themselves


def is_multirun() -> bool:
    """Whether this is a job of a sweep."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def record_failure(error: Exception, message: str | None, folder: Path) -> float:
    """Tell and record that a job failed; the score that the sweep gets, lower is better.

    Args:
        error: What ended the job.
        message: The one line that explains it, if there is one.
        folder: Of the job.

    Raises:
        Exception: The error, where the sweeper counts failures.
    """
    log.error("error: %s", message or "".join(traceback.format_exception(error)))
    recorded = read_status(folder).get("status")
    if recorded != "diverged":
        write_status(folder, "error", error=message or repr(error))
        if _TOLERANCE in HydraConfig.get().sweeper:
            raise error
    return DIVERGED_SCORE


class SweepSummary(Callback):
    """Hydra callback: keeps `summary.csv` of the sweep, a row for each job, and prints it at the end.

    The exit status is 1 if a job failed, unless the sweeper tolerates that.
    """

    def on_job_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Add what the job left."""
        if config.hydra.mode == RunMode.MULTIRUN:
            _summary(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print what the jobs left."""
        folder = Path(config.hydra.sweep.dir)
        frame = _summary(folder)
        if frame is None:
            return
        shown = frame.drop(columns="error", errors="ignore")
        log.info("%s", shown.to_string(index=False, float_format=lambda x: f"{x:.4g}", na_rep="-"))
        log.info("summary.csv is in %s", folder)
        failed = frame[frame.status == "error"]
        if len(failed) and _TOLERANCE not in config.hydra.sweeper:
            reasons = set(failed.reindex(columns=["error"]).error)
            why = f": {reasons.pop()}" if len(reasons) == 1 else "; summary.csv says why"
            sys.exit(f"error: {len(failed)} of {len(frame)} jobs failed: {', '.join(failed.job)}{why}")


def _summary(folder: Path) -> Any:
    """The table, which is written too; None without jobs."""
    import pandas as pd

    rows = [_row(job) for job in sorted(folder.iterdir(), key=_number) if job.is_dir()]
    if not rows:
        return None
    frame = pd.DataFrame(rows)
    write_atomically(folder / "summary.csv", frame.to_csv(index=False))
    return frame


def _number(job: Path) -> int:
    head = job.name.partition("_")[0]
    return int(head) if head.isdigit() else -1


def _row(job: Path) -> dict[str, Any]:
    status = read_status(job)
    row: dict[str, Any] = {
        "job": job.name,
        "status": status.get("status", "error"),
        "seconds": status.get("seconds"),
    }
    if "error" in status:
        row["error"] = status["error"]
    path = job / "comparison.json"
    if path.is_file():
        first, *others = json.loads(path.read_text())["rows"]
        row |= {"optimizer": first["optimizer"], "diverged": first["diverged"]}
        row |= {k: first["final"].get(k) for k in ("mean", "median", "geometric_mean")}
        best = min(others, key=lambda r: r["final"]["mean"] or float("inf"), default=None)
        if best is not None:
            row |= {"best_baseline": best["optimizer"], "its_mean": best["final"]["mean"]}
    return row
