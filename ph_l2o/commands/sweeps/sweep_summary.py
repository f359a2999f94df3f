"""The files and the printed tables of a sweep; torch is not imported for what every job writes."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from ph_l2o.commands.sweeps.sweep_jobs import FINISHED
from ph_l2o.commands.sweeps.sweep_rows import SweepRows
from ph_l2o.files import csv_text, write_atomically
from ph_l2o.lazy import resolve

log = logging.getLogger(__name__)

_SUMMARY, _OVER_SEEDS, _PICTURE = "summary.csv", "summary_over_seeds.csv", "sweep.png"
_WIDTH = 80  # characters of a line


def write_summary(folder: Path, rows: SweepRows) -> None:
    """Write `summary.csv`, a row for each job that has begun."""
    write_atomically(folder / _SUMMARY, csv_text(rows.read(folder)[0]))


def summarize_sweep(folder: Path, rows: SweepRows) -> list[dict[str, Any]]:
    """Write and print what the jobs left: `summary.csv`; `summary_over_seeds.csv`, where seeds were swept; `sweep.png`.

    Returns:
        The rows, one for each job.
    """
    tables = resolve("ph_l2o.evaluation.sweep_tables")
    found, swept = rows.read(folder)
    write_atomically(folder / _SUMMARY, csv_text(found))
    log.info("%s", tables.jobs_table(found, swept))
    for row in found:
        if row["status"] not in FINISHED:
            reason = _without_places(str(row["error"]), folder, row["job"])
            log.info("%s", _cropped(f"job {row['job'].partition('_')[0]}: {row['status']}: {reason}"))
    written = [_SUMMARY]
    settings = tables.over_seeds(found, swept)
    if settings is not None:
        write_atomically(folder / _OVER_SEEDS, csv_text(settings))
        log.info("means over seeds [95 %% intervals]\n%s", tables.seeds_table(settings))
        written.append(_OVER_SEEDS)
    picture = resolve("ph_l2o.evaluation.sweep_plots:plot_sweep")(found, swept)
    if picture is not None:
        write_atomically(folder / _PICTURE, picture)
        written.append(_PICTURE)
    log.info("%s: in %s", ", ".join(written), os.path.relpath(folder))
    return found


def _without_places(text: str, folder: Path, job: str) -> str:
    """The reason without the folders in which all jobs are, so that it fits into a line."""
    for place in (folder.absolute(), os.path.relpath(folder)):
        text = text.replace(f"{place}/", "")
    return text.replace(f"{job}/", "")


def _cropped(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…"
