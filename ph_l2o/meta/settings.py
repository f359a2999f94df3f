"""Settings of meta-training, checked in one place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ph_l2o.checks import did_you_mean
from ph_l2o.estimators import OBJECTIVES, Estimator
from ph_l2o.inner import Objective
from ph_l2o.meta.outer_optimizer import OUTER_OPTIMIZERS, OUTER_SCHEDULES, MakeOptimizer, MakeSchedule, outer_schedule
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer

_COUNTS = {
    "outer_steps": "updates of the learned optimizer",
    "num_problems": "problems of a batch",
    "truncation": "inner steps of a window",
    "episodes": "episodes that are under way at once",
    "windows": "windows of an outer step",
    "val_every": "outer steps between validations",
    "val_problems": "problems of a validation",
    "val_horizon": "inner steps of a validation",
}

_CHOICES: dict[str, Mapping[str, Any]] = {
    "objective": OBJECTIVES, "outer_optimizer": OUTER_OPTIMIZERS, "schedule": OUTER_SCHEDULES,
}  # fmt: skip


@dataclass
class MetaSettings:
    """How a learned optimizer is trained.

    Args:
        outer_steps: Updates of the learned optimizer, >= 1.
        num_problems: Problems of a batch, over all processes, >= 1.
        horizons: Inner steps of the episodes, taken in turn; each >= `truncation`.
        truncation: Inner steps of a window, after which there is a meta-gradient, >= 1; None: whole episodes.
        curriculum: Share of the outer steps, in [0, 1], in which the longest of the horizons that episodes take grows
            from the first of `horizons` to the last; 0: all from the start.
        episodes: Episodes that are under way at once, >= 1; outer steps take their windows in turn, so that windows
            in a row are of unlike problems and ages.
        windows: Windows, of the episodes in turn, whose meta-gradients an outer step averages, >= 1. Of several, each
            is clipped by `gradient_clip` by itself, so that none outweighs the others.
        hide_loss: Share of the problems, in [0, 1], whose loss the optimizer never sees; for one that can go without.
        tell_steps: Whether the optimizer is told the number of steps of each episode, so that it follows its schedule.
        rescale: Random re-scaling of the optimizees' tensors: log scale ~ U(-rescale, rescale), >= 0.
        objective: A name of `ph_l2o.estimators.OBJECTIVES`, or a function of a window's losses `(K, B)`, a mean over
            problems.
        outer_optimizer: What updates the learned optimizer: `adam`, `adamw`, `sgd`, or what makes a torch.optim
            optimizer of parameters and `lr`.
        learning_rate: Of the outer optimizer, > 0.
        only: Names of the meta-parameters, or of modules with them, that are trained, such as `controller.4`; the
            others stay as they are. None: all are.
        schedule: `cosine` (to 0 at the last outer step), `constant`, or what makes a scheduler of torch.optim of an
            optimizer; it steps with each outer step.
        warmup_steps: Outer steps of linear warm-up, >= 0; 0 for a scheduler of one's own.
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
    truncation: int | None = 20
    curriculum: float = 0.0
    episodes: int = 1
    windows: int = 1
    hide_loss: float = 0.0
    tell_steps: bool = False
    rescale: float = 0.0
    objective: str | Objective = "mean_log_loss"
    only: tuple[str, ...] | None = None
    outer_optimizer: str | MakeOptimizer = "adam"
    learning_rate: float = 3e-3
    schedule: str | MakeSchedule = "cosine"
    warmup_steps: int = 0
    gradient_clip: float | None = 0.3
    val_every: int = 100
    val_problems: int = 256
    val_horizon: int = 100

    def __post_init__(self) -> None:
        for name, what in _COUNTS.items():
            value = getattr(self, name)
            if (value is not None or name != "truncation") and (not isinstance(value, int) or value < 1):
                raise ValueError(f"meta.{name}={value}: must be a whole number >= 1 ({what})")
        self.horizons = tuple(self.horizons)
        if self.only is not None:
            names = tuple(self.only) if isinstance(self.only, Sequence) and not isinstance(self.only, str) else ()
            if not names or any(not isinstance(name, str) or not name for name in names):
                raise ValueError(
                    f"meta.only={self.only}: must be a list of names of meta-parameters, or of their modules, or null"
                )
            self.only = names
        if not self.horizons or any(not isinstance(h, int) or h < 1 for h in self.horizons):
            raise ValueError(f"meta.horizons={list(self.horizons)}: must be whole numbers >= 1 (inner steps)")
        for name, known in _CHOICES.items():
            _check_choice(name, getattr(self, name), known)
        if self.learning_rate <= 0:
            raise ValueError(f"meta.learning_rate={self.learning_rate}: must be > 0")
        if self.warmup_steps < 0 or self.rescale < 0:
            name = "warmup_steps" if self.warmup_steps < 0 else "rescale"
            raise ValueError(f"meta.{name}={getattr(self, name)}: must be >= 0")
        if self.warmup_steps > 0 and not isinstance(self.schedule, str):
            raise ValueError(
                f"meta.warmup_steps={self.warmup_steps}: must be 0 where meta.schedule is not one of "
                f"{', '.join(OUTER_SCHEDULES)}"
            )
        for name in ("curriculum", "hide_loss"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"meta.{name}={getattr(self, name)}: must be in [0, 1]")
        if self.curriculum > 0 and list(self.horizons) != sorted(self.horizons):
            raise ValueError(f"meta.horizons={list(self.horizons)}: must ascend where meta.curriculum > 0")
        if self.gradient_clip is not None and self.gradient_clip <= 0:
            raise ValueError(f"meta.gradient_clip={self.gradient_clip}: must be > 0, or null for no clipping")

    @property
    def outer_loss(self) -> Objective:
        """The objective as a function."""
        return OBJECTIVES[self.objective] if isinstance(self.objective, str) else self.objective

    def configure(self, parameters: Iterable[nn.Parameter]) -> tuple[Optimizer, LRScheduler]:
        """The outer optimizer of these parameters, and its schedule."""
        choice = self.outer_optimizer
        make = OUTER_OPTIMIZERS[choice] if isinstance(choice, str) else choice
        outer = make(parameters, lr=self.learning_rate)
        schedule = outer_schedule(outer, self.schedule, outer_steps=self.outer_steps, warmup_steps=self.warmup_steps)
        return outer, schedule

    def trained(self, optimizer: LearnedOptimizer) -> dict[str, nn.Parameter]:
        """The meta-parameters that are trained, by name.

        Raises:
            ValueError: If `only` names something else.
        """
        found = dict(optimizer.named_parameters())
        if self.only is None:
            return found
        for part in self.only:
            if not any(f"{name}.".startswith(f"{part}.") for name in found):
                hint = did_you_mean(part, found)
                raise ValueError(f"meta.only={list(self.only)}: {part} is no meta-parameter and no module{hint}")
        return {n: p for n, p in found.items() if any(f"{n}.".startswith(f"{part}.") for part in self.only)}

    def window_length(self, estimator: Estimator, horizon: int) -> int:
        """Inner steps of the windows of an episode."""
        return estimator.window_length(horizon if self.truncation is None else self.truncation, horizon)

    def inner_steps(self, estimator: Estimator) -> int:
        """Inner steps of the whole run, at least."""
        return self.outer_steps * self.windows * self.window_length(estimator, min(self.horizons))

    def check_truncation(self, estimator: Estimator) -> None:
        """Raise ValueError if an estimator's window does not fit into every episode."""
        shortest = min(self.horizons)
        if self.window_length(estimator, shortest) > shortest:
            raise ValueError(
                f"meta.truncation={self.truncation}: must be <= the shortest of meta.horizons={list(self.horizons)}"
            )


def _check_choice(name: str, value: Any, known: Mapping[str, Any]) -> None:
    if callable(value) or value in known:
        return
    hint = did_you_mean(str(value), known, 1)
    raise ValueError(
        f"meta.{name}={value}: must be one of {', '.join(known)}, or a node with _target_ and _partial_: true{hint}"
    )
