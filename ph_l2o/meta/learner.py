"""Meta-training as a Lightning module: one truncation window of the inner loop for each outer step."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ph_l2o import checkpoints
from ph_l2o.errors import CheckpointError, Interrupted, NonFiniteError
from ph_l2o.estimators import Estimator
from ph_l2o.inner.meta_parameters import trained
from ph_l2o.interruption import Interruption
from ph_l2o.meta.episodes import Episode, EpisodeSource
from ph_l2o.meta.executors import ExecutorChoice
from ph_l2o.meta.metrics_csv import MetricsCSV
from ph_l2o.meta.outer_step import WindowAverage
from ph_l2o.meta.processes import check_same_weights, mean_over_processes
from ph_l2o.meta.resume import check_resumable
from ph_l2o.meta.rotation import EpisodeRotation
from ph_l2o.meta.settings import MetaSettings
from ph_l2o.meta.validation import validate
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.tasks import Task

log = logging.getLogger(__name__)

_MAX_SKIPPED_IN_A_ROW = 20


class _Surrogate(torch.autograd.Function):
    """A value with given gradients, times a factor."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        del parameters
        ctx.factor, ctx.gradients = factor, gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        factor = outer[0] * ctx.factor
        return None, None, None, *(factor * g for g in ctx.gradients)


class MetaLearner(pl.LightningModule):
    """Trains a learned optimizer.

    Optimisation is Lightning's automatic one: `training_step` returns a loss whose gradient is the meta-gradient, so
    that clipping, averaging over processes, accumulation and schedules are the same for every estimator.

    Args:
        optimizer: The learned optimizer φ.
        task: What it learns on.
        estimator: Where the meta-gradient comes from.
        settings: See `MetaSettings`.
        seed: Seed of every draw.
        config: The run's resolved configuration, plain values, kept in the checkpoint so that the optimizer can be
            rebuilt; the default is the optimizer's own recipe.
        compile: `step` compiles the whole inner step (the first outer step then takes up to half a minute longer),
            `update` the optimizer's update alone, `auto` what the run is long enough for (the update for many
            architectures, and where the step cannot be compiled), False nothing.

    Raises:
        ValueError: If the window does not fit into every episode, or `compile` is none of these.
    """

    def __init__(
        self,
        optimizer: LearnedOptimizer,
        task: Task,
        estimator: Estimator,
        settings: MetaSettings,
        *,
        seed: int = 0,
        config: dict[str, Any] | None = None,
        compile: str | bool = "auto",
    ):
        super().__init__()
        settings.check_truncation(estimator)
        chosen = settings.trained(optimizer)
        for name, p in optimizer.named_parameters():
            p.requires_grad_(name in chosen)
        self.optimizer, self.task, self.estimator, self.meta = optimizer, task, estimator, settings
        self.seed, self.config = seed, config or {"optimizer": optimizer.recipe}
        source = EpisodeSource(
            task,
            seed=seed,
            num_problems=settings.num_problems,
            horizons=settings.horizons,
            rescale=settings.rescale,
            hide_loss=settings.hide_loss,
            tell_steps=settings.tell_steps,
            curriculum=settings.curriculum,
            start=estimator.start,
        )
        self._rotation = EpisodeRotation(source, settings.episodes)
        executors = ExecutorChoice(
            compile, estimator, inner_steps=settings.inner_steps(estimator), architectures=task.num_architectures
        )
        self._windows = WindowAverage(optimizer, estimator, executors, self._rotation, settings)
        self.skipped_steps = 0  # outer steps without update, because something was not finite
        self.windows_left_out = 0  # of outer steps with several windows
        self._skipped_in_a_row = 0
        self._metrics: dict[str, float] = {}  # of the outer step
        self._in_epoch = 0  # steps that a resumed run has done since the last validation
        self._must_stop = self._is_validating = False  # all processes together

    @property
    def interruption(self) -> Interruption:
        """The signals that can end the training."""
        return self._windows.interruption

    @interruption.setter
    def interruption(self, value: Interruption) -> None:
        self._windows.interruption = value

    # The outer loop. An "epoch" of Lightning is what lies between two validations.

    def train_dataloader(self) -> range:
        """Numbers of the outer steps up to the next validation; the draws come from keys, not from a loader."""
        every, first = self.meta.val_every, self.global_step - self._in_epoch
        self._in_epoch = 0
        return range(first, min((self.global_step // every + 1) * every, self.meta.outer_steps))

    def val_dataloader(self) -> range:
        """One item: a validation is one batched run."""
        return range(1)

    def configure_optimizers(self) -> Any:
        """The outer optimizer with its schedule."""
        outer, schedule = self.meta.configure(trained(self.optimizer).values())
        return {"optimizer": outer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Let `metrics.csv` end where the training goes on, and no signal end it but where all is in good order."""
        if self.trainer.world_size == 1:
            self.interruption.take_over()
        for logger in self._files():
            logger.take_up(self.global_step)
        if self._is_validating:  # when the run was interrupted; Lightning would leave the validation out
            self.trainer.validating = True
            self.trainer.fit_loop.epoch_loop.val_loop.restarting = False
            self.trainer.fit_loop.epoch_loop.val_loop.run()
            self.trainer.training = True

    def _files(self) -> list[MetricsCSV]:
        loggers = self._trainer.loggers if self._trainer is not None else []
        return [logger for logger in loggers if isinstance(logger, MetricsCSV)]

    def _where(self) -> dict[str, Any]:
        dtype = next(self.optimizer.parameters()).dtype
        return {
            "rank": self.global_rank,
            "world_size": self.trainer.world_size,
            "device": self.device,
            "dtype": dtype,
        }

    @property
    def episode(self) -> Episode | None:
        """The episode of the last window."""
        return self._rotation.current

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        """Unroll the windows of an outer step; the loss that is returned has the meta-gradient as its gradient."""
        del batch, batch_idx
        self._rotation.remember()
        try:
            with self._interruptible():
                found = self._windows.outer_step(self.global_step / self.meta.outer_steps, **self._where())
        except Interrupted:
            self._rotation.take_back()
            raise
        except CheckpointError as error:
            raise CheckpointError(f"ckpt_path={self.trainer.ckpt_path}: {error}") from error
        self._must_stop = found.stop
        if found.left_out and found.is_finite:
            self._leave_out(found.left_out)
        self._metrics = found.metrics
        factor = 1.0 if found.is_finite else math.nan
        return _Surrogate.apply(found.outer_loss, factor, found.gradient, *trained(self.optimizer).values())

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Where a signal takes effect: at once, or, of several processes, where all of them know of it."""
        if self.trainer.world_size == 1:
            with self.interruption.here():
                yield
            return
        if self._must_stop:
            raise Interrupted(self.interruption.number or signal.SIGTERM)
        yield

    def _leave_out(self, count: int) -> None:
        self.windows_left_out += count
        log.warning(
            "outer step %d: %d of %d windows without a finite meta-gradient left out, their episodes restarted "
            "(%d windows so far)", self.global_step + 1, count, self.meta.windows, self.windows_left_out,
        )  # fmt: skip

    def _log_step(self, metrics: dict[str, float]) -> None:
        """Log an outer step; Lightning's own `log_dict` takes as long as a compiled window of a small problem."""
        values = {f"train/{name}": value for name, value in metrics.items()}
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.global_step + 1) % every == 0:
            for logger in self.trainer.loggers:
                logger.log_metrics(values, step=self.global_step)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip, or skip a step whose meta-gradient is not finite; all processes see the same gradient."""
        parameters = [p for p in self.optimizer.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        value = float(norm)
        if not math.isfinite(value):
            self._skip(optimizer)
        else:
            self._skipped_in_a_row = 0
            if gradient_clip_val is not None and gradient_clip_algorithm == "value":
                self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            elif gradient_clip_val is not None and value > gradient_clip_val:
                torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)
        self._log_step(self._metrics | {"gradient_norm": value, "skipped_steps": float(self.skipped_steps)})

    def _skip(self, optimizer: torch.optim.Optimizer) -> None:
        # Without gradients the outer optimizer leaves everything as it is; the episode starts anew.
        optimizer.zero_grad(set_to_none=True)
        self._rotation.restart()
        self.skipped_steps += 1
        self._skipped_in_a_row += 1
        log.warning(
            "outer step %d: meta-gradient not finite, step skipped and episode restarted (%d skipped so far)",
            self.global_step + 1,
            self.skipped_steps,
        )
        if self._skipped_in_a_row >= _MAX_SKIPPED_IN_A_ROW:
            raise NonFiniteError(
                f"{_MAX_SKIPPED_IN_A_ROW} outer steps in a row without a finite meta-gradient: "
                "lower meta.learning_rate, meta.horizons or meta.truncation, or look into the task's loss"
            )

    def validation_step(self, batch: int, batch_idx: int) -> None:
        """See `validate`."""
        del batch, batch_idx
        where, meta = self._where(), self.meta
        if where["world_size"] > 1 and self.estimator.averages_processes:
            check_same_weights(self.optimizer)
        sizes = {"num_problems": meta.val_problems, "horizon": meta.val_horizon, "tell_steps": meta.tell_steps}
        self._is_validating = True
        with self._interruptible():
            metrics = validate(self.optimizer, self.task, seed=self.seed, **sizes, **where)
        self._is_validating = False
        testing = self.trainer.testing
        self.log_dict(metrics, sync_dist=where["world_size"] > 1, logger=testing, batch_size=1)
        means = mean_over_processes(torch.stack(list(metrics.values()))).tolist()
        for logger in [] if testing else self.trainer.loggers:  # Lightning would do so after the checkpoint is written
            logger.log_metrics(dict(zip(metrics, means, strict=True)), step=max(self.global_step - 1, 0))

    def test_step(self, batch: int, batch_idx: int) -> None:
        """The same as a validation, for `trainer.test`."""
        self.validation_step(batch, batch_idx)

    def test_dataloader(self) -> range:
        """One item."""
        return range(1)

    # Checkpoints hold all that a resume needs.

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> MetaLearner:
        """The learner with these arguments of the constructor, and the weights in a checkpoint.

        Lightning's own would call a function that the file names.

        Raises:
            CheckpointError: If the file is damaged, or of another optimizer.
        """
        content = checkpoints.read_checkpoint(checkpoint_path)
        learner = cls(*args, **kwargs)
        if problem := checkpoints.problem_of_weights(content["state_dict"], learner.state_dict()):
            raise CheckpointError(f"{checkpoint_path}: its {problem}; give the optimizer that it is of")
        learner.load_state_dict(content["state_dict"])
        return learner

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the configuration and the episodes, over all processes; what is logged comes to the disk first."""
        for logger in self._files():
            logger.flush()
        checkpoint[checkpoints.KEY] = {
            "config": self.config,
            "seed": self.seed,
            "outer_step": self.global_step,
            "trained": list(trained(self.optimizer)),
            **self._rotation.state(),
            "skipped_steps": self.skipped_steps,
            "windows_left_out": self.windows_left_out,
            "is_validating": self._is_validating,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the episodes up again, if all is there that a resume needs."""
        loop = self.trainer.fit_loop.state_dict()
        check_resumable(checkpoint, self.optimizer, self.meta, self.trainer.ckpt_path, loop)
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        if progress["is_last_batch"]:
            # Lightning would count the steps of the stretch before among those of the next, whatever its length.
            progress.update(is_last_batch=False, current=dict.fromkeys(progress["current"], 0))
        self._in_epoch = progress["current"]["completed"]
        self.take_up(checkpoint[checkpoints.KEY])

    def take_up(self, saved: dict[str, Any]) -> None:
        """The episodes and counts that `on_save_checkpoint` has saved."""
        self._is_validating = saved.get("is_validating", False)
        self._rotation.load(saved)
        self.skipped_steps, self.windows_left_out = saved["skipped_steps"], saved["windows_left_out"]
