"""The windows of an outer step, and the meta-gradient that they give together."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ph_l2o.estimators import Estimator
from ph_l2o.estimators.objectives import EPS
from ph_l2o.inner import Window
from ph_l2o.inner.meta_parameters import trained
from ph_l2o.interruption import Interruption
from ph_l2o.meta.executors import ExecutorChoice
from ph_l2o.meta.processes import mean_over_processes
from ph_l2o.meta.rotation import EpisodeRotation
from ph_l2o.meta.settings import MetaSettings
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer


class OuterStep(NamedTuple):
    """What the windows of an outer step give.

    Attributes:
        outer_loss: Mean over the windows, shape `()`.
        gradient: Mean over the windows, in the order of the parameters.
        is_finite: Whether it is that of windows without anything that is not finite.
        left_out: Windows that are not counted, because something in them was not finite.
        stop: Whether a signal asked any process to end.
        metrics: Numbers to log.
    """

    outer_loss: Tensor
    gradient: list[Tensor]
    is_finite: bool
    left_out: int
    stop: bool
    metrics: dict[str, float]


class _Found(NamedTuple):
    """What one window gives."""

    outer_loss: Tensor
    gradient: list[Tensor]
    is_finite: bool  # in all processes
    diverged: float  # share of the problems
    stop: bool  # of any process
    horizon: int
    task_steps: int


class WindowAverage:
    """Runs the windows of outer steps, and averages their meta-gradients.

    Args:
        optimizer: The learned optimizer.
        estimator: Where the meta-gradient of a window comes from.
        executors: What runs the inner steps.
        episodes: What the windows are of.
        settings: Of meta-training.

    Attributes:
        interruption: What this process knows of signals; the processes tell each other.
    """

    def __init__(
        self,
        optimizer: LearnedOptimizer,
        estimator: Estimator,
        executors: ExecutorChoice,
        episodes: EpisodeRotation,
        settings: MetaSettings,
    ):
        self._optimizer, self._estimator, self._executors = optimizer, estimator, executors
        self._episodes, self._settings = episodes, settings
        self.interruption = Interruption()

    def outer_step(self, done: float, **where: Any) -> OuterStep:
        """The next outer step's windows, after the share `done` of the training; see `EpisodeRotation.take_turn`."""
        began, count = time.perf_counter(), self._settings.windows
        windows = [self._window(done, **where) for _ in range(count)]
        counted = [w for w in windows if w.is_finite] or windows[:1]  # a step without any is skipped as a whole
        metrics = {
            "outer_loss": sum(float(w.outer_loss) for w in counted) / len(counted),
            "diverged_frac": sum(w.diverged for w in windows) / count,
            "unroll_length": sum(w.horizon for w in windows) / count,
            "task_steps_per_s": sum(w.task_steps for w in windows) / (time.perf_counter() - began),
        }
        gradient = [torch.stack(parts).mean(0) for parts in zip(*(w.gradient for w in counted), strict=True)]
        outer_loss = torch.stack([w.outer_loss for w in counted]).mean()
        stop = any(w.stop for w in windows)
        return OuterStep(outer_loss, gradient, counted[0].is_finite, count - len(counted), stop, metrics)

    def _window(self, done: float, **where: Any) -> _Found:
        optimizer, settings = self._optimizer, self._settings
        episode = self._episodes.take_turn(optimizer, done, **where)
        count = settings.window_length(self._estimator, episode.horizon)
        phi = trained(optimizer)
        window = Window(optimizer, phi, episode.problem, episode.carry, episode.age, count, settings.outer_loss)
        estimate = self._executors.estimate(window)
        episode.carry, episode.age = estimate.carry, episode.age + count
        gradient = [estimate.gradient[name] for name in phi]
        diverged = ~torch.isfinite(estimate.losses).all(0)
        broken = diverged.any() | ~torch.isfinite(estimate.carry.params.flat).all()
        if settings.windows > 1:
            gradient = self._clipped(gradient)
            broken = broken | ~torch.stack([torch.isfinite(g).all() for g in gradient]).all()
        # All processes must leave a window out alike, whatever they exchange for the gradient.
        stop = broken.new_tensor(self.interruption.number is not None)
        numbers = torch.stack([estimate.outer_loss, diverged.to(estimate.outer_loss).mean(), broken, stop])
        numbers = mean_over_processes(numbers)
        is_finite = numbers[2].item() == 0
        if not is_finite:
            self._episodes.restart()
        task_steps, stops = count * settings.num_problems, numbers[3].item() > 0
        return _Found(numbers[0], gradient, is_finite, numbers[1].item(), stops, episode.horizon, task_steps)

    def _clipped(self, gradient: list[Tensor]) -> list[Tensor]:
        """The gradient of all processes; one window of several must not outweigh the others."""
        flat = torch.cat([g.flatten() for g in gradient])
        if not self._estimator.averages_processes:
            flat = mean_over_processes(flat)
        if self._settings.gradient_clip is not None:
            flat = flat * (self._settings.gradient_clip / (flat.norm() + EPS)).clamp_max(1)
        return [part.view_as(g) for part, g in zip(flat.split([g.numel() for g in gradient]), gradient, strict=True)]
