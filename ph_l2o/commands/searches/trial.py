"""A training that is a trial of a search: its validations are reported, and where it has no prospect it ends."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig

from ph_l2o.commands.recording import DIVERGED_SCORE
from ph_l2o.commands.searches.search_space import is_search
from ph_l2o.commands.searches.study import PRUNERS, make, open_study
from ph_l2o.errors import Pruned
from ph_l2o.meta import WandbRun


def trial_callbacks() -> list[pl.Callback]:
    """What a training needs that is a trial of a search; nothing for others."""
    config = HydraConfig.get()
    if not is_search(config) or config.sweeper.trial is None:
        return []
    return [ReportToStudy(Path(config.sweep.dir), config.sweeper.trial, config.sweeper.pruner)]


class ReportToStudy(pl.Callback):
    """Reports `val/score` to the study at each validation, and ends the training where the pruner says so.

    Args:
        folder: Of the search.
        number: Of the trial.
        pruner: A node for `make`, or None.
    """

    def __init__(self, folder: Path, number: int, pruner: Any):
        import optuna
        from optuna.trial import Trial

        made = make(pruner, "hydra.sweeper.pruner", optuna.pruners, PRUNERS)
        study = open_study(folder, pruner=made)
        self.trial = Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)
        self.pruned_at: int | None = None  # outer step

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report, and perhaps ask the trainer to stop, once its checkpoint is written."""
        del pl_module
        step, score = trainer.global_step, float(trainer.callback_metrics["val/score"])
        reported = self.trial.study.get_trials(deepcopy=False)[self.trial.number].intermediate_values
        if step not in reported:  # else the run was stopped after it
            self.trial.report(score if math.isfinite(score) else DIVERGED_SCORE, step)
        if step < trainer.max_steps and self.trial.should_prune():
            self.pruned_at, trainer.should_stop = step, True
            for logger in trainer.loggers:
                if isinstance(logger, WandbRun):
                    logger.log_summary({"pruned_at": step})


def check_pruned(callbacks: list[pl.Callback]) -> None:
    """Raise Pruned if a training was ended because it had no prospect."""
    for callback in callbacks:
        if isinstance(callback, ReportToStudy) and callback.pruned_at is not None:
            raise Pruned(f"pruned after outer step {callback.pruned_at}")
