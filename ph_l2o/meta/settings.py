"""Settings of meta-training, checked in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ph_l2o.checks import did_you_mean
from ph_l2o.estimators.estimator import Estimator
from ph_l2o.estimators.objectives import OBJECTIVES

OUTER_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}


@dataclass
class MetaSettings:
    """How a learned optimizer is trained.

    Args:
        outer_steps: Updates of the learned optimizer, >= 1.
        num_problems: Problems of a batch, over all processes, >= 1.
        horizons: Inner steps of the episodes, taken in turn; each >= `truncation`.
        truncation: Inner steps of a window, after which there is a meta-gradient, >= 1.
        curriculum: Share of the outer steps, in [0, 1], in which the longest of the horizons that episodes take grows
            from the first of `horizons` to the last; 0: all from the start.
        episodes: Episodes that are under way at once, >= 1; outer steps take their windows in turn, so that windows
            in a row are of unlike problems and ages.
        windows: Windows, of the episodes in turn, whose meta-gradients an outer step averages, >= 1. Of several, each
            is clipped by `gradient_clip` by itself, so that none outweighs the others.
        hide_loss: Share of the problems, in [0, 1], whose loss the optimizer never sees; for one that can go without.
        rescale: Random re-scaling of the optimizees' tensors: log scale ~ U(-rescale, rescale), >= 0.
        objective: `mean_log_loss`, `mean_loss` or `final_loss`.
        outer_optimizer: `adam`, `adamw` or `sgd` of torch.optim, which updates the learned optimizer.
        learning_rate: Of the outer optimizer, > 0.
        schedule: `cosine` (to 0 at the last outer step) or `constant`.
        warmup_steps: Outer steps of linear warm-up, >= 0.
        gradient_clip: Largest norm of the meta-gradient, > 0, or None.
        val_every: Outer steps between validations and checkpoints, >= 1.
        val_problems: Problems of a validation, >= 1.
        val_horizon: Inner steps of a validation, >= 1.

    Raises:
        ValueError: If a value is out of range.
    """

    outer_steps: int = 600
    num_problems: int = 64
    horizons: tuple[int, ...] = (20, 60, 100, 100, 200)
    truncation: int = 20
    curriculum: float = 0.0
    episodes: int = 1
    windows: int = 1
    hide_loss: float = 0.0
    rescale: float = 0.0
    objective: str = "mean_log_loss"
    outer_optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = 3e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 0
    gradient_clip: float | None = 0.3
    val_every: int = 100
    val_problems: int = 256
    val_horizon: int = 100

    def __post_init__(self) -> None:
        for name, what in (
            ("outer_steps", "updates of the learned optimizer"),
            ("num_problems", "problems of a batch"),
            ("truncation", "inner steps of a window"),
            ("episodes", "episodes that are under way at once"),
            ("windows", "windows of an outer step"),
            ("val_every", "outer steps between validations"),
            ("val_problems", "problems of a validation"),
            ("val_horizon", "inner steps of a validation"),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"meta.{name}={value}: must be a whole number >= 1 ({what})")
        self.horizons = tuple(self.horizons)
        if not self.horizons or any(not isinstance(h, int) or h < 1 for h in self.horizons):
            raise ValueError(f"meta.horizons={list(self.horizons)}: must be whole numbers >= 1 (inner steps)")
        if self.objective not in OBJECTIVES:
            hint = did_you_mean(self.objective, OBJECTIVES, 1)
            raise ValueError(f"meta.objective={self.objective}: must be one of {', '.join(OBJECTIVES)}{hint}")
        if self.outer_optimizer not in OUTER_OPTIMIZERS:
            allowed = ", ".join(OUTER_OPTIMIZERS)
            raise ValueError(f"meta.outer_optimizer={self.outer_optimizer}: must be one of {allowed}")
        if self.schedule not in ("cosine", "constant"):
            raise ValueError(f"meta.schedule={self.schedule}: must be cosine or constant")
        if self.learning_rate <= 0:
            raise ValueError(f"meta.learning_rate={self.learning_rate}: must be > 0")
        if self.warmup_steps < 0 or self.rescale < 0:
            name = "warmup_steps" if self.warmup_steps < 0 else "rescale"
            raise ValueError(f"meta.{name}={getattr(self, name)}: must be >= 0")
        for name in ("curriculum", "hide_loss"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"meta.{name}={getattr(self, name)}: must be in [0, 1]")
        if self.curriculum > 0 and list(self.horizons) != sorted(self.horizons):
            raise ValueError(f"meta.horizons={list(self.horizons)}: must ascend where meta.curriculum > 0")
        if self.gradient_clip is not None and self.gradient_clip <= 0:
            raise ValueError(f"meta.gradient_clip={self.gradient_clip}: must be > 0, or null for no clipping")

    def check_truncation(self, estimator: Estimator) -> None:
        """Raise ValueError if an estimator's window does not fit into every episode."""
        shortest = min(self.horizons)
        if estimator.window_length(self.truncation, shortest) > shortest:
            raise ValueError(
                f"meta.truncation={self.truncation}: must be <= the shortest of meta.horizons={list(self.horizons)}"
            )
