"""A comparison that is shown, saved, and logged."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger

from ph_l2o.commands.log_results import log_diagnostics
from ph_l2o.evaluation import Comparison, compare, diagnostics
from ph_l2o.evaluation.baselines import Entry
from ph_l2o.evaluation.drawn_curves import write_curves
from ph_l2o.evaluation.modes import InMode
from ph_l2o.tasks import Task

log = logging.getLogger(__name__)


def compare_and_save(optimizers: Mapping[str, Entry], task: Task, folder: Path, **settings: Any) -> Comparison:
    """Compare, print the table, and write `comparison.csv`, `comparison.json`, `curves.csv` and `curves.png`."""
    began = time.monotonic()
    comparison = compare(optimizers, task, **settings)
    comparison.to_csv(folder / "comparison.csv")
    comparison.to_json(folder / "comparison.json")
    write_curves(folder / "curves.csv", {(name,): curve for name, curve in comparison.curves.items()})
    comparison.plot(folder / "curves.png")
    log.info("%s", comparison)
    log.info(
        "comparison took %.0f s; comparison.csv, comparison.json, curves.csv and curves.png are in %s",
        time.monotonic() - began,
        os.path.relpath(folder),
    )
    return comparison


def diagnose_and_save(
    optimizers: Mapping[str, Entry], task: Task, folder: Path, *, horizon: int, seed: int, loggers: Iterable[Logger]
) -> None:
    """Write `diagnostics_<optimizer>.png` and `.csv` for each optimizer that has something to show, and log it."""
    shown = 0
    for name, optimizer in optimizers.items():
        if isinstance(optimizer, str):
            continue
        if isinstance(optimizer, InMode):
            optimizer = optimizer.at(horizon)
        found = diagnostics.diagnose(optimizer, task, horizon, seed=seed)
        if found.by_tensor:
            shown += 1
            path = folder / f"diagnostics_{name}.png"
            diagnostics.plot(found, title=f"{name} on {task.name}").savefig(path)
            diagnostics.write_csv(found, path.with_suffix(".csv"))
            log.info("what %s does is in %s", name, os.path.relpath(path))
            log_diagnostics(loggers, name, found, path)
    if not shown:
        log.warning("diagnostics=true: none of the optimizers has diagnostics; port_hamiltonian does")
