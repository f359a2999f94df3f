"""Weights & Biases, beside the CSV file."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ph_l2o.files import write_atomically

log = logging.getLogger(__name__)

_PATIENCE = 8.0  # seconds in which the server must answer


def wandb_logger(
    folder: str | Path,
    *,
    project: str,
    name: str,
    group: str | None = None,
    tags: Sequence[str] = (),
    offline: bool | None = None,
) -> Any:
    """A Lightning logger for W&B: online where an API key is configured and the server answers, else offline.

    Which of them is said in one line.

    Args:
        folder: Folder of the run; W&B's files lie in `wandb/` below it. Where `wandb_id` in it names a run, as after a
            resume, that run goes on.
        project: W&B project.
        name: Name of the run.
        group: Group of the run, such as a sweep.
        tags: Tags of the run.
        offline: True, False, or None to decide by whether there is an API key, and a server.

    Raises:
        ValueError: If `offline` is False and the server does not answer, or does not know the key.
    """
    from pytorch_lightning.loggers import WandbLogger
    from pytorch_lightning.utilities import rank_zero_only

    class OuterStepLogger(WandbLogger):
        """With the outer step, counted from 1 as in `metrics.csv`, as the axis of every curve."""

        @rank_zero_only
        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
            if step is not None:
                metrics = {**metrics, "outer_step": step + 1}
            super().log_metrics(metrics, step)

    if rank_zero_only.rank != 0:
        return WandbLogger(project=project, save_dir=str(folder))  # does nothing on the other processes
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb
    from wandb.errors import AuthenticationError, CommError

    id_file = Path(folder) / "wandb_id"
    run_id = id_file.read_text().strip() if id_file.is_file() else None
    mode = os.environ.get("WANDB_MODE")
    if offline is not None:
        mode = "offline" if offline else "online"
    elif mode is None:
        mode = "online" if wandb.login(prompt=False, verify=False) else "offline"
    settings = {
        "project": project, "name": name, "group": group, "tags": list(tags), "dir": str(folder),
        "id": run_id, "resume": "allow" if run_id else None,
    }  # fmt: skip
    why = "no API key, or asked for"
    try:
        run = _start(mode, settings)
    except CommError as error:
        why = f"no answer from {wandb.setup().settings.base_url}"
        if isinstance(error, AuthenticationError) or offline is False:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"logger.wandb.offline={offline}: {why} ({reason}); try true") from error
        mode, run = "offline", _start("offline", settings)
    where = run.url if mode == "online" else mode
    if mode == "offline":
        where = f"offline ({why}); upload with `wandb sync {os.path.relpath(Path(run.dir).parent)}`"
    log.info("W&B: %s", where)
    logger = OuterStepLogger(experiment=run, save_dir=str(folder))
    run.define_metric("outer_step")
    run.define_metric("*", step_metric="outer_step")
    write_atomically(id_file, f"{run.id}\n")
    return logger


def _start(mode: str, settings: Mapping[str, Any]) -> Any:
    """W&B's run. Lightning's own offline switch sets a mode that current W&B does not know."""
    import wandb

    noise = logging.getLogger("wandb")
    level = noise.level
    noise.setLevel(logging.CRITICAL + 1)  # it would show a traceback
    try:
        return wandb.init(**settings, mode=mode, settings=wandb.Settings(init_timeout=_PATIENCE))  # type: ignore[arg-type]
    finally:
        noise.setLevel(level)
