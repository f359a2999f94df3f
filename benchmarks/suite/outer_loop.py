"""Speed of the whole outer loop in task-steps/s (inner steps of one problem): ours, and a reference script's."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytorch_lightning as pl
import torch

from ph_l2o import checkpoints
from ph_l2o.estimators import Estimator, Truncated
from ph_l2o.meta import MetaLearner, MetaSettings, fit
from ph_l2o.optimizers import LearnedOptimizer
from ph_l2o.tasks import ImageClassification, Task

HAS_COMPILATION = "compile" in inspect.signature(MetaLearner).parameters


@dataclass(frozen=True)
class Loop:
    """Sizes of a meta-training.

    Attributes:
        problems: Problems of a batch.
        horizons: Inner steps of the episodes, in turn.
        outer_steps: Outer steps of a repetition.
        truncation: Inner steps of a window.
        rescale: Log scale of the random re-scaling.
    """

    problems: int
    horizons: tuple[int, ...]
    outer_steps: int
    truncation: int
    rescale: float = 0.0

    def settings(self) -> MetaSettings:
        """With one validation at the end, as short as can be; the clock has stopped before it."""
        return MetaSettings(
            outer_steps=self.outer_steps, num_problems=self.problems, horizons=self.horizons, rescale=self.rescale,
            truncation=self.truncation, val_every=self.outer_steps, val_problems=2, val_horizon=1,
        )  # fmt: skip

    def task_steps(self, estimator: Estimator, outer_steps: int | None = None) -> int:
        """Inner steps of all problems in the first outer steps; the default are all."""
        done = age = episode = 0
        for _ in range(self.outer_steps if outer_steps is None else outer_steps):
            horizon = self.horizons[episode % len(self.horizons)]
            window = estimator.window_length(self.truncation, horizon)
            done, age = done + window, age + window
            if age >= horizon:
                episode, age = episode + 1, 0
        return done * self.problems


class Clock(pl.Callback):
    """Seconds of each outer step: from one's start to the next one's, and to its end for the last."""

    def __init__(self) -> None:
        self.began: list[float] = []
        self.ended = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        self.began.append(time.perf_counter())

    def on_train_batch_end(self, *_: Any) -> None:
        self.ended = time.perf_counter()

    def seconds(self, first: int = 0) -> float:
        """From the start of outer step `first` to the end of the last one; validation comes after it."""
        return self.ended - self.began[first]

    def steps(self) -> list[float]:
        """Of each outer step."""
        return [b - a for a, b in zip(self.began, [*self.began[1:], self.ended], strict=True)]


def learner(
    optimizer: LearnedOptimizer, task: Task, estimator: Estimator, loop: Loop, mode: str | bool = False
) -> MetaLearner:
    """The module that Lightning trains, compiled as `mode` says where the package can."""
    compilation: dict[str, Any] = {"compile": mode} if HAS_COMPILATION else {}
    return MetaLearner(optimizer, task, estimator, loop.settings(), **compilation)


class Ours:
    """A measurement of `ph_l2o.meta.fit`: Lightning, logging to metrics.csv and outer optimizer included.

    All repetitions train one learner from the same weights and episodes, so what is compiled stays compiled.

    Args:
        make_optimizer: Makes the optimizer.
        task: What it learns on.
        make_estimator: Makes the estimator; refusals then belong to the measurement.
        loop: Sizes.
        mode: Of compilation.
    """

    def __init__(
        self, make_optimizer: Callable[[], LearnedOptimizer], task: Task, make_estimator: Callable[[], Estimator],
        loop: Loop, *, mode: str | bool = False,
    ):  # fmt: skip
        self._make = lambda: learner(make_optimizer(), task, make_estimator(), loop, mode)
        self._loop, self._learner = loop, None

    def __call__(self) -> float:
        if self._learner is None:
            torch.manual_seed(0)
            self._learner, self._start = self._make(), dict[str, Any]()
            self._weights = copy.deepcopy(self._learner.state_dict())
            self._learner.on_save_checkpoint(self._start)
        self._learner.load_state_dict(self._weights)
        self._learner.take_up(self._start[checkpoints.KEY])
        seconds = timed(self._learner).seconds()
        return self._loop.task_steps(self._learner.estimator) / seconds


def timed(learner: MetaLearner, **trainer: Any) -> Clock:
    """Train, with a clock."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        fit(learner, folder, callbacks=[clock], **trainer)
    if learner.skipped_steps:
        raise RuntimeError(f"{learner.skipped_steps} outer steps skipped: a step that is not taken is no measurement")
    return clock


def reference(script: ModuleType, task: Task, activations: Sequence[str], loop: Loop) -> Callable[[], float]:
    """A measurement of the reference script's `meta_train`, on problems of the same sizes."""
    generator = torch.Generator().manual_seed(1)
    images: tuple[torch.Tensor, torch.Tensor] | None = None
    if isinstance(task, ImageClassification):
        pixels, labels = task.images("train")
        images = pixels.flatten(1).float() / 255, labels

    def sample(episode: int) -> Any:
        if images is None:
            return script.Quadratic(loop.problems, generator)
        activation = activations[episode % len(activations)]
        return script.MnistMlp(loop.problems, generator, images, act=activation, log_scale=loop.rescale)

    def measure() -> float:
        torch.manual_seed(0)
        optimizer = script.Controller()
        began = time.perf_counter()
        script.meta_train(optimizer, sample, loop.outer_steps, loop.truncation, list(loop.horizons), lambda *_: None)
        return loop.task_steps(Truncated()) / (time.perf_counter() - began)

    return measure


def imported(path: Path) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location("reference", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SystemExit(f"--reference {path}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
