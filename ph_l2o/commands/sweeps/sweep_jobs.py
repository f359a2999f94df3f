"""A job of a sweep that goes on: it is skipped if it is finished, resumed if it was stopped, else run anew."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from ph_l2o.commands.folders import LAST
from ph_l2o.commands.recording import DIVERGED_SCORE, read_status, saved_config
from ph_l2o.errors import OtherRunError
from ph_l2o.files import json_text

log = logging.getLogger(__name__)

FINISHED = ("ok", "diverged", "pruned")  # statuses after which nothing is left to do
_NOT_ITS_WORK = ("paths", "logger", "callbacks", "ckpt_path", "overrides", "git_revision", "num_processes")
_KEPT = (".hydra", ".lock", "run.log", "wandb", "wandb_id")


class Before(NamedTuple):
    """What an earlier start of the same job left.

    Attributes:
        status: `ok`, `diverged` or `pruned`, if nothing is left to do; else None.
        score: That the sweep gets of a finished job.
        checkpoint: To go on from, if there is one.
    """

    status: str | None = None
    score: float | None = None
    checkpoint: Path | None = None


def take_up(cfg: DictConfig, folder: Path) -> Before:
    """What is there of a job; what cannot be used of an earlier start is removed. The folder has to be held.

    Args:
        cfg: Of the job.
        folder: Of the job.

    Raises:
        OtherRunError: If the folder is one of a run with other settings.
    """
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    _check_same(config, folder)
    recorded = read_status(folder)
    if recorded.get("status") in FINISHED:
        log.info("%s: is %s already", folder.name, recorded["status"])
        return Before(recorded["status"], float(recorded.get("score", DIVERGED_SCORE)))
    if (folder / LAST).is_file():
        return Before(checkpoint=folder / LAST)
    clear(folder)
    return Before()


def clear(folder: Path) -> None:
    """Remove what a run without a checkpoint left, of which nothing can be used. The folder has to be held."""
    for path in folder.iterdir():
        if path.name in _KEPT:
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _check_same(config: dict[str, Any], folder: Path) -> None:
    saved = saved_config(folder)
    if saved is None:
        return
    now, then = _work(config), _work(saved)
    for key in {**then, **now}:
        if json_text(now.get(key)) != json_text(then.get(key)):
            raise OtherRunError(
                f"{folder.name}: was run with other settings of {key}; start a new sweep, with hydra.sweep.dir=FOLDER, "
                "or search, with another hydra.sweeper.study_name"
            )


def _work(config: dict[str, Any]) -> dict[str, Any]:
    """What decides the job's results, by top-level keys."""
    return {key: value for key, value in config.items() if key not in _NOT_ITS_WORK}
