"""Runs of single optimizers on single tasks of a suite, kept in files, so that a suite can go on where it stopped."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import logging
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ph_l2o
from ph_l2o.evaluation.plots import Curve, curve
from ph_l2o.evaluation.runner import evaluate_optimizer, num_coordinates
from ph_l2o.evaluation.statistics import Array
from ph_l2o.files import json_text, write_atomically
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.tasks.task import Task

_LOG = logging.getLogger(__name__)

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
    optimizer: LearnedOptimizer,
    task: Task,
    *,
    cache_dir: str | Path | None,
    label: str,
    device: torch.device | str,
    dtype: torch.dtype,
    **settings: Any,
) -> Run:
    """Run an optimizer on test problems, or read the run from the cache.

    Args:
        optimizer: The optimizer.
        task: The task.
        cache_dir: Folder of the files; None: no cache.
        label: Begins the file's name.
        device: Where to run.
        dtype: Floating-point type of the parameters.
        **settings: `horizon`, `num_problems`, `seed` and `chunk` of `evaluate_optimizer`.
    """
    counted = {name: value for name, value in settings.items() if name != "chunk"}  # no part of the problems
    spec = {
        "optimizer": fingerprint(optimizer),
        "task": task.spec(),
        "sources": [_source(type(optimizer)), _source(type(task))],
        "measure": f"mean of the last {TAIL:.0%} of the steps",
        "device": torch.device(device).type,
        "dtype": str(dtype),
        "version": ph_l2o.__version__,
        **counted,
    }
    key = hashlib.sha256(json.dumps(spec, sort_keys=True, default=str).encode()).hexdigest()
    file_name = f"{re.sub(r'[^A-Za-z0-9_.-]', '_', label)}-{key[:24]}.json"
    path = None if cache_dir is None else Path(cache_dir) / file_name
    found = None if path is None else _read(path, key)
    if found is not None:
        return found
    result = evaluate_optimizer(optimizer, task, device=device, dtype=dtype, test_metrics=False, **settings)
    tail = max(1, round(TAIL * result.horizon))
    losses = result.losses[1:][-tail:].mean(0)
    run = Run(
        losses, result.losses[0], result.diverged, curve(result.losses), num_coordinates(task), result.step_seconds
    )
    if path is not None:
        _write(path, key, spec, run)
    return run


def fingerprint(optimizer: LearnedOptimizer) -> str:
    """A hash of an optimizer's class, settings and weights."""
    digest = hashlib.sha256()
    for name, part in optimizer.named_modules():
        settings = {k: v for k, v in vars(part).items() if k != "training" and _is_plain(v)}
        digest.update(f"{name} {type(part).__module__}.{type(part).__qualname__} {sorted(settings.items())!r}".encode())
    for name, tensor in optimizer.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:24]


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


@functools.cache
def _source(cls: type) -> str:
    """A hash of the file that has the class: an edited optimizer is not the one whose runs are kept."""
    try:
        return hashlib.sha256(inspect.getsource(sys.modules[cls.__module__]).encode()).hexdigest()[:16]
    except (OSError, TypeError, KeyError):
        return "unknown"


def _write(path: Path, key: str, spec: dict[str, Any], run: Run) -> None:
    values = {field.name: getattr(run, field.name) for field in dataclasses.fields(run)}
    values |= {k: getattr(run, k).tolist() for k in ("losses", "starts", "diverged")}
    values["curve"] = [[float(f"{y:.5g}") for y in part] for part in run.curve]
    write_atomically(path, json_text({"key": key, "run": values, "spec": spec}))


def _read(path: Path, key: str) -> Run | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
        if content["key"] != key:
            raise ValueError("it is of another run")
        values = content["run"]
        losses, starts = (np.array([float(v) for v in values[k]]) for k in ("losses", "starts"))
        parts = Curve(*(np.array([float(y) for y in part]) for part in values["curve"]))
        diverged = np.array(values["diverged"], bool)
        return Run(losses, starts, diverged, parts, int(values["coordinates"]), float(values["step_seconds"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        _LOG.warning("%s: damaged file of a run, computed anew (%s: %s)", path, type(error).__name__, error)
        return None
