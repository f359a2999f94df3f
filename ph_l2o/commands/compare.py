"""A comparison that is shown, saved, and logged."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ph_l2o.evaluation import Comparison, compare
from ph_l2o.optimizers.base import LearnedOptimizer
from ph_l2o.tasks import Task

log = logging.getLogger(__name__)


def compare_and_save(
    optimizers: Mapping[str, LearnedOptimizer | str], task: Task, folder: Path, **settings: Any
) -> Comparison:
    """Compare, print the table, and write `comparison.csv`, `comparison.json` and `curves.png`."""
    began = time.monotonic()
    comparison = compare(optimizers, task, **settings)
    comparison.to_csv(folder / "comparison.csv")
    comparison.to_json(folder / "comparison.json")
    comparison.plot(folder / "curves.png")
    log.info("%s", comparison)
    log.info(
        "comparison took %.0f s; comparison.csv, comparison.json and curves.png are in %s",
        time.monotonic() - began,
        os.path.relpath(folder),
    )
    return comparison


def log_to_wandb(logger: Any, comparison: Comparison, folder: Path) -> None:
    """Log the table and the curves."""
    import wandb

    logger.experiment.log(
        {
            "test/comparison": wandb.Table(dataframe=comparison.to_frame()),
            "test/curves": wandb.Image(str(folder / "curves.png")),
        }
    )
