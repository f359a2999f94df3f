"""What the jobs of a sweep left, a row for each."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ph_l2o.commands.recording import is_held, read_status, reason_of
from ph_l2o.commands.sweeps.sweep_folder import jobs_in
from ph_l2o.reports.comparison import ratio_to_best

_LOCATIONS = ("mean", "median", "geometric_mean", "iqm")


class SweepRows:
    """Rows of all jobs in a folder; that of a job which has not changed is not read again."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, dict[str, Any]]] = {}

    def read(self, folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
        """A row for each job, and the keys whose values differ between jobs."""
        rows = [self._row(job) for job in jobs_in(folder)]
        typed = [row["typed"] for row in rows]
        keys = list(dict.fromkeys(key for values in typed for key in values))
        swept = [key for key in keys if len({values.get(key) for values in typed}) > 1]
        return [_flat(row, swept) for row in rows], [key.lstrip("+") for key in swept]

    def _row(self, job: Path) -> dict[str, Any]:
        path = job / "status.json"
        written = path.stat().st_mtime_ns if path.is_file() else -1
        known, row = self._known.get(job.name, (None, {}))
        if known != written or row["status"] in ("running", "killed"):
            row = _row(job)
            self._known[job.name] = written, row
        return row


def _flat(row: dict[str, Any], swept: list[str]) -> dict[str, Any]:
    values = {key.lstrip("+"): row["typed"].get(key) for key in swept}
    rest = {k: v for k, v in row.items() if k not in ("job", "typed") and k not in values}
    return {"job": row["job"], **values, **rest}


def _row(job: Path) -> dict[str, Any]:
    status = read_status(job)
    row: dict[str, Any] = {
        "job": job.name,
        "typed": _overrides(job / ".hydra" / "overrides.yaml"),
        "status": _status(job, status),
        "seconds": status.get("seconds"),
        "val/score": status.get("score"),
    }
    path = job / "comparison.json"
    if path.is_file() and row["status"] == "ok":
        found = json.loads(path.read_text())
        first = found["rows"][0]
        row |= {"optimizer": first["optimizer"], "diverged": first["diverged"]}
        row |= {k: _number(first["final"].get(k)) for k in _LOCATIONS}
        best = next((r for r in found["rows"] if r["optimizer"] == found["best_baseline"]), None)
        if best is not None:
            row |= {"best_baseline": best["optimizer"], "its_mean": _number(best["final"]["mean"])}
            ratio, _ = ratio_to_best(first)
            row["ratio"] = ratio if math.isfinite(ratio) else None
    row["error"] = status.get("error") or status.get("reason") or reason_of(row["status"])
    return row


def _status(job: Path, status: Any) -> str:
    """`running` without a process that is at it was ended by what no process can answer."""
    found = status.get("status")
    if found in (None, "running"):
        return "running" if is_held(job) else "killed"
    return found


def _overrides(path: Path) -> dict[str, str]:
    from omegaconf import OmegaConf

    if not path.is_file():
        return {}
    pairs = [str(line).partition("=") for line in OmegaConf.load(path)]
    return {key: value for key, _, value in pairs}


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
