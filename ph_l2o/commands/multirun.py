"""A table of all jobs at the end of a multirun."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

log = logging.getLogger(__name__)


class SweepSummary(Callback):
    """Hydra callback: prints `summary.csv` of the sweep, a row for each job."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Read what the jobs left."""
        import pandas as pd

        folder = Path(config.hydra.sweep.dir)
        rows = [_row(job) for job in sorted(folder.iterdir(), key=_number) if job.is_dir()]
        if not rows:
            return
        frame = pd.DataFrame(rows)
        frame.to_csv(folder / "summary.csv", index=False)
        log.info("%s", frame.to_string(index=False, float_format=lambda x: f"{x:.4g}", na_rep="-"))
        log.info("summary.csv is in %s", folder)


def _number(job: Path) -> int:
    head = job.name.partition("_")[0]
    return int(head) if head.isdigit() else -1


def _row(job: Path) -> dict[str, Any]:
    status = json.loads((job / "status.json").read_text()) if (job / "status.json").is_file() else {}
    row: dict[str, Any] = {
        "job": job.name,
        "status": status.get("status", "error"),
        "seconds": status.get("seconds"),
    }
    path = job / "comparison.json"
    if path.is_file():
        first, *others = json.loads(path.read_text())["rows"]
        row |= {"optimizer": first["optimizer"], "diverged": first["diverged"]}
        row |= {k: first["final"].get(k) for k in ("mean", "median", "geometric_mean")}
        best = min(others, key=lambda r: r["final"]["mean"] or float("inf"), default=None)
        if best is not None:
            row |= {"best_baseline": best["optimizer"], "its_mean": best["final"]["mean"]}
    return row
