"""Runs of single optimizers on single tasks of a suite, kept in files, so that a suite can go on where it stopped."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ph_l2o.evaluation.cache import cached
from ph_l2o.evaluation.estimates import Array, Curve, curve
from ph_l2o.evaluation.runner import evaluate_optimizer, num_coordinates
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.tasks.task import Task

TAIL = 0.1  # share of the steps over whose losses an optimizer is judged


@dataclass(frozen=True, eq=False)
class Run:
    """An optimizer's run on P problems of a task.

    Attributes:
        losses: Mean of each problem's losses over the last tenth of the steps, `(P,)`; +∞ where one is not finite.
        starts: loss_0 of each problem, `(P,)`.
        diverged: Where a loss is not finite, or the final loss is worse than the start's, bool `(P,)`.
        curve: Quartiles over problems of loss_0 … loss_T.
        coordinates: Parameters of a problem, N.
        step_seconds: Wall-clock seconds for each task-step.
    """

    losses: Array
    starts: Array
    diverged: np.ndarray
    curve: Curve
    coordinates: int
    step_seconds: float

    @property
    def judged(self) -> Array:
        """Losses of an optimizer that is judged, `(P,)`: +∞ where it diverged, and so a ratio of 0."""
        return np.where(self.diverged, np.inf, self.losses)

    @property
    def as_reference(self) -> Array:
        """Losses of an optimizer that others are judged by, `(P,)`: where it diverged, not above the start's.

        So no ratio is infinite, and nobody gains much by a reference that diverged.
        """
        return np.where(self.diverged, np.minimum(self.losses, self.starts), self.losses)


def cached_run(
    optimizer: LearnedOptimizer, task: Task, horizon: int, *, num_problems: int, seed: int,
    cache_dir: str | Path | None, label: str, device: torch.device | str, dtype: torch.dtype, chunk: int | None,
) -> Run:  # fmt: skip
    """Run an optimizer on test problems, or read the run from the cache.

    Args:
        optimizer: The optimizer.
        task: The task.
        horizon: Inner steps.
        num_problems: Test problems.
        seed: Of the problems.
        cache_dir: Folder of the files; None: no cache.
        label: Begins the file's name.
        device: Where to run.
        dtype: Floating-point type of the parameters.
        chunk: Problems to run at once; None: chosen by their size.
    """
    what: dict[str, Any] = {"horizon": horizon, "num_problems": num_problems, "seed": seed}

    def make() -> Run:
        result = evaluate_optimizer(
            optimizer, task, device=device, dtype=dtype, chunk=chunk, test_metrics=False, **what
        )
        losses = result.losses[1:][-max(1, round(TAIL * horizon)) :].mean(0)
        quartiles, coordinates = curve(result.losses), num_coordinates(task)
        return Run(losses, result.losses[0], result.diverged, quartiles, coordinates, result.step_seconds)

    settings = {**what, "device": torch.device(device).type, "dtype": str(dtype)}
    return cached(cache_dir, label, settings, optimizer, task, make=make, write=_written, read=_read)[0]


def _written(run: Run) -> dict[str, Any]:
    values = {field.name: getattr(run, field.name) for field in dataclasses.fields(run)}
    values |= {k: getattr(run, k).tolist() for k in ("losses", "starts", "diverged")}
    return {**values, "curve": [[float(f"{y:.5g}") for y in part] for part in run.curve]}


def _read(values: dict[str, Any]) -> Run:
    losses, starts = (np.array([float(v) for v in values[k]]) for k in ("losses", "starts"))
    quartiles = Curve(*(np.array([float(y) for y in part]) for part in values["curve"]))
    diverged = np.array(values["diverged"], bool)
    return Run(losses, starts, diverged, quartiles, int(values["coordinates"]), float(values["step_seconds"]))
