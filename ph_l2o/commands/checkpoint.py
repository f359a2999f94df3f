"""Trained optimizers from checkpoint files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ph_l2o.optimizers.base import LearnedOptimizer

_KEY = "ph_l2o"


class CheckpointError(RuntimeError):
    """A checkpoint is damaged, or not one of ours."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of a training, without executing anything that is in it.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged, or was not written by ph_l2o.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can break the reader anywhere
        raise CheckpointError(
            f"{path}: damaged, or no checkpoint ({type(error).__name__}); use another, or train anew"
        ) from error
    if not isinstance(content, dict) or _KEY not in content or "state_dict" not in content:
        raise CheckpointError(f"{path}: not a checkpoint of ph_l2o; give a best.ckpt or last.ckpt that train.py wrote")
    return content


def load_optimizer(path: str | Path, *, plugins: Iterable[str] = ()) -> tuple[LearnedOptimizer, dict[str, Any]]:
    """The trained optimizer in a checkpoint, rebuilt from its own configuration, and that configuration."""
    from ph_l2o.commands.instantiate import build

    content = read_checkpoint(path)
    config = content[_KEY]["config"]
    if not config.get("optimizer"):
        raise CheckpointError(f"{path}: holds no configuration of its optimizer, so it can't be rebuilt from the file")
    optimizer = build(config["optimizer"], plugins=plugins)
    prefix = "optimizer."
    weights = {k.removeprefix(prefix): v for k, v in content["state_dict"].items() if k.startswith(prefix)}
    try:
        optimizer.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: its weights don't fit {config['optimizer']['_target_']} of this version of ph_l2o"
        ) from error
    return optimizer.eval(), config
