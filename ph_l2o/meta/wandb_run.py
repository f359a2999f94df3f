"""Weights & Biases, beside the CSV file."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def wandb_logger(
    folder: str | Path,
    *,
    project: str,
    name: str,
    group: str | None = None,
    tags: tuple[str, ...] = (),
    offline: bool | None = None,
    run_id: str | None = None,
    config: dict[str, Any] | None = None,
) -> Any:
    """A Lightning logger for W&B: online where an API key is configured, else offline, said in one line.

    Args:
        folder: Folder of the run; W&B's files lie in `wandb/` below it.
        project: W&B project.
        name: Name of the run.
        group: Group of the run, such as a sweep.
        tags: Tags of the run.
        offline: True, False, or None to decide by whether there is an API key.
        run_id: The W&B run to go on with, when a run is resumed.
        config: Logged as the run's configuration.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb
    from pytorch_lightning.loggers import WandbLogger
    from pytorch_lightning.utilities import rank_zero_only

    mode = os.environ.get("WANDB_MODE")
    if offline is None:
        offline = mode == "offline" or (mode not in ("online", "disabled") and not wandb.api.api_key)
    logger = WandbLogger(
        project=project, name=name, group=group, tags=list(tags), save_dir=str(folder), offline=offline,
        id=run_id, resume="allow" if run_id else None, config=config,
    )  # fmt: skip
    if rank_zero_only.rank == 0:
        run = logger.experiment
        run.define_metric("*", step_metric="trainer/global_step")
        where = f"offline, upload with `wandb sync {run.dir.removesuffix('/files')}`" if offline else run.url
        if mode == "disabled":
            where = "disabled by WANDB_MODE"
        log.info("W&B: %s", where)
    return logger
