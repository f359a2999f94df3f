"""How Lightning writes the checkpoints of a run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins import TorchCheckpointIO  # type: ignore[attr-defined]

from ph_l2o.checkpoints import add_checksum, read_checkpoint
from ph_l2o.errors import Interrupted
from ph_l2o.files import write_atomically

_PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints that are old or new and whole, with a checksum, as `ph_l2o.checkpoints` reads them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint beside the one that it replaces, then put it in its place."""
        del storage_options
        add_checksum(checkpoint)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomically(path, buffer.getvalue())

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """See `read_checkpoint`; tensors come to the CPU, and nothing is executed, whatever is asked for."""
        del args, kwargs
        return read_checkpoint(path)


class RunCheckpoint(ModelCheckpoint):
    """Lightning's, whose state names files of the run's folder alone: a run can be moved, and no folder is told."""

    @property
    def state_key(self) -> str:
        """As that of older checkpoints."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def state_dict(self) -> dict[str, Any]:
        """Lightning's, without folders."""
        state = super().state_dict()
        state["best_k_models"] = {Path(path).name: score for path, score in self.best_k_models.items()}
        return state | {name: Path(state[name]).name for name in _PATHS} | {"dirpath": ""}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on, if the best checkpoint is in the folder of this run; otherwise there is none yet."""
        folder = Path(str(self.dirpath))

        def here(path: str) -> str:
            return str(folder / Path(path).name) if path else ""

        if (folder / Path(state_dict["best_model_path"]).name).is_file():
            kept = {here(path): score for path, score in state_dict["best_k_models"].items()}
            paths = {name: here(state_dict[name]) for name in _PATHS}
            super().load_state_dict({**state_dict, **paths, "best_k_models": kept, "dirpath": self.dirpath})


class SaveWhenInterrupted(pl.Callback):
    """Writes a checkpoint when a signal ends a training.

    A run that is interrupted in its last validation keeps the checkpoint before: Lightning would not make up for the
    validation after all outer steps.

    Args:
        path: The checkpoint.
    """

    def __init__(self, path: Path):
        self.path = path

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Write the checkpoint after a signal."""
        if isinstance(exception, Interrupted) and trainer.global_step < trainer.max_steps:
            trainer.save_checkpoint(self.path, weights_only=False)
