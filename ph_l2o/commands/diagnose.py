"""What the optimizer does during a training, beside its metrics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytorch_lightning as pl

from ph_l2o.evaluation import diagnostics
from ph_l2o.meta import WandbRun


class Diagnose(pl.Callback):
    """After each validation, what the optimizer does on problems of the validation split, in the run's metrics.

    `diagnostics/<what>_start`, `…_middle` and `…_end`: medians over problems and tensors in the first, middle and last
    tenth of an episode of `horizon` steps, on the task or the first member of a mixture. In W&B also
    `diagnostics/<what>/<tensor>`: medians over problems and the whole episode.

    Args:
        horizon: Inner steps, >= 10.
        num_problems: Problems, >= 1.
    """

    def __init__(self, horizon: int = 100, num_problems: int = 2):
        self.horizon, self.num_problems = horizon, num_problems

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Run an episode, and log it."""
        if trainer.global_rank != 0:
            return
        _, task = pl_module.task.members()[0]
        found = diagnostics.diagnose(
            pl_module.optimizer, task, self.horizon, num_problems=self.num_problems, seed=pl_module.seed, split="val"
        )
        metrics: dict[str, float] = {}
        tenth = max(self.horizon // 10, 1)
        begins = {"start": 0, "middle": (self.horizon - tenth) // 2, "end": self.horizon - tenth}
        for name, values in (found.numbers | found.by_tensor).items():
            for where, begin in begins.items():
                metrics[f"diagnostics/{name}_{where}"] = float(np.median(values[begin : begin + tenth]))
        by_tensor = {
            f"diagnostics/{name}/{tensor}": float(np.median(values[:, :, k]))
            for name, values in found.by_tensor.items()
            for k, tensor in enumerate(found.tensors)
        }
        for logger in trainer.loggers:
            if metrics:
                more = by_tensor if isinstance(logger, WandbRun) else {}
                logger.log_metrics(metrics | more, step=trainer.global_step - 1)
