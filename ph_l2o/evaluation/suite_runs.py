"""Runs of single optimizers on single tasks of a suite, kept in files, so that a suite can go on where it stopped."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ph_l2o.evaluation.cache import cached
from ph_l2o.evaluation.estimates import Array, Curve, curve
from ph_l2o.evaluation.runner import TAIL, evaluate_optimizer, num_coordinates
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.tasks.task import Task

Places = npt.NDArray[np.intp]

_PLACES = 100  # of a run at which its smoothed loss is kept


@dataclass(frozen=True, eq=False)
class Run:
    """An optimizer's run on P problems of a task.

    Attributes:
        losses: Mean of each problem's losses over the last tenth of the steps, `(P,)`; +∞ where one is not finite.
        starts: loss_0 of each problem, `(P,)`.
        diverged: Where a loss is not finite, or `losses` is worse than the start's, bool `(P,)`.
        curve: Quartiles over problems of loss_0 … loss_T.
        smoothed: Mean of each problem's losses over a tenth of the run's steps up to each of `places`, `(K, P)`; at the
            last place, `losses`.
        metrics: Metrics at the end on data that no problem is trained on, each `(P,)`.
        coordinates: Parameters of a problem, N.
        step_seconds: Wall-clock seconds for each task-step.
    """

    losses: Array
    starts: Array
    diverged: np.ndarray
    curve: Curve
    smoothed: Array
    metrics: dict[str, Array]
    coordinates: int
    step_seconds: float

    @property
    def judged(self) -> Array:
        """Losses of an optimizer that is judged, `(P,)`: +∞ where it diverged, and so a ratio of 0."""
        return self._judged(self.losses)

    @property
    def as_reference(self) -> Array:
        """Losses of an optimizer that others are judged by, `(P,)`: where it diverged, not above the start's.

        So no ratio is infinite, and nobody gains much by a reference that diverged.
        """
        return self._as_reference(self.losses)

    @property
    def held_out(self) -> Array | None:
        """Test loss of each problem, `(P,)`; None where the task has none."""
        return self.metrics.get("test_loss")

    @property
    def held_out_judged(self) -> Array | None:
        """As `judged`, of the test loss."""
        return None if self.held_out is None else self._judged(self.held_out)

    @property
    def held_out_as_reference(self) -> Array | None:
        """As `as_reference`, of the test loss."""
        return None if self.held_out is None else self._as_reference(self.held_out)

    def _judged(self, losses: Array) -> Array:
        return np.where(self.diverged, np.inf, losses)

    def _as_reference(self, losses: Array) -> Array:
        return np.where(self.diverged | np.isinf(losses), np.minimum(losses, self.starts), losses)


def places(horizon: int) -> Places:
    """Numbers of steps, up to 100 in equal distances, the last one all."""
    return np.unique(np.ceil(np.linspace(0, horizon, min(_PLACES, horizon) + 1)[1:]).astype(np.intp))


def smoothed(losses: Array, horizon: int) -> Array:
    """Means of losses `(T + 1, P)` over a tenth of T steps up to each of `places`, or over all so far, `(K, P)`."""
    width = max(1, round(TAIL * horizon))
    return np.stack([losses[max(1, k - width + 1) : k + 1].mean(0) for k in places(horizon)])


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
        result = evaluate_optimizer(optimizer, task, device=device, dtype=dtype, chunk=chunk, **what)
        means, starts = smoothed(result.losses, horizon), result.losses[0]
        # Ten fresh mini-batches, as in `result.diverged`, can be too few where they have a row each.
        diverged = ~np.isfinite(result.losses).all(0) | ~np.isfinite(result.final) | (means[-1] > starts)
        return Run(
            means[-1], starts, diverged, curve(result.losses), means, result.metrics, num_coordinates(task),
            result.step_seconds,
        )  # fmt: skip

    settings = {**what, "device": torch.device(device).type, "dtype": str(dtype)}
    return cached(cache_dir, label, settings, optimizer, task, make=make, write=_written, read=_read)[0]


def _written(run: Run) -> dict[str, Any]:
    values = {field.name: getattr(run, field.name) for field in dataclasses.fields(run)}
    values |= {k: getattr(run, k).tolist() for k in ("losses", "starts", "diverged", "smoothed")}
    values["metrics"] = {k: v.tolist() for k, v in run.metrics.items()}
    return {**values, "curve": [[float(f"{y:.5g}") for y in part] for part in run.curve]}


def _read(values: dict[str, Any]) -> Run:
    quartiles = Curve(*map(_numbers, values["curve"]))
    metrics = {k: _numbers(v) for k, v in values["metrics"].items()}
    means = np.stack([_numbers(row) for row in values["smoothed"]])
    return Run(
        _numbers(values["losses"]), _numbers(values["starts"]), np.array(values["diverged"], bool), quartiles, means,
        metrics, int(values["coordinates"]), float(values["step_seconds"]),
    )  # fmt: skip


def _numbers(values: list[Any]) -> Array:
    return np.array([float(v) for v in values])
