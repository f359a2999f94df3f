"""Meta-training as a Lightning module: one truncation window of the inner loop for each outer step."""

from __future__ import annotations

import logging
import math
import time
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor

from ph_l2o import checkpoints
from ph_l2o.compilation import checked, choose
from ph_l2o.errors import CompileError, NonFiniteError
from ph_l2o.estimators import OBJECTIVES, Estimate, Estimator
from ph_l2o.estimators.objectives import EPS
from ph_l2o.inner import Window, final_loss, run
from ph_l2o.keys import ProblemKeys
from ph_l2o.meta.episodes import Episode, EpisodeSource, save
from ph_l2o.meta.processes import check_same_weights, mean_over_processes
from ph_l2o.meta.score import relative_score
from ph_l2o.meta.settings import OUTER_OPTIMIZERS, MetaSettings
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.tasks import Task

log = logging.getLogger(__name__)

_MAX_SKIPPED_IN_A_ROW = 20


class _Window(NamedTuple):
    """What one window gives to an outer step."""

    outer_loss: Tensor
    gradient: list[Tensor]
    is_fine: bool  # whether all is finite, in all processes
    diverged: float  # share of the problems
    horizon: int
    task_steps: int


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
        self.optimizer, self.task, self.estimator, self.meta = optimizer, task, estimator, settings
        self.objective = OBJECTIVES[settings.objective]
        self._compile, self._is_decided = checked(compile), False
        self.seed, self.config = seed, config or {"optimizer": optimizer.recipe}
        self.source = EpisodeSource(
            task,
            seed=seed,
            num_problems=settings.num_problems,
            horizons=settings.horizons,
            rescale=settings.rescale,
            hide_loss=settings.hide_loss,
            curriculum=settings.curriculum,
            start=estimator.start,
        )
        self.episodes: list[Episode | None] = [None] * settings.episodes  # outer steps take them in turn
        self.skipped_steps = 0  # outer steps without update, because something was not finite
        self.windows_left_out = 0  # of outer steps with several windows
        self._skipped_in_a_row = 0
        self._saved_episodes: list[dict[str, Any] | None] = [None] * settings.episodes
        self._turn = self._windows = 0  # whose turn it was; windows so far
        self._next_episode = 0
        self._metrics: dict[str, float] = {}  # of the outer step

    # The outer loop. An "epoch" of Lightning is what lies between two validations.

    def train_dataloader(self) -> range:
        """Numbers of the outer steps up to the next validation; the draws come from keys, not from a loader."""
        return range(self.global_step, min(self.global_step + self.meta.val_every, self.meta.outer_steps))

    def val_dataloader(self) -> range:
        """One item: a validation is one batched run."""
        return range(1)

    def configure_optimizers(self) -> Any:
        """The outer optimizer with its schedule."""
        meta = self.meta
        make: Any = OUTER_OPTIMIZERS[meta.outer_optimizer]
        outer = make(self.optimizer.parameters(), lr=meta.learning_rate, fused=True)

        def factor(step: int) -> float:
            warm = min(1.0, (step + 1) / (meta.warmup_steps + 1))
            return warm * (0.5 + 0.5 * math.cos(math.pi * step / meta.outer_steps) if meta.schedule == "cosine" else 1)

        schedule = torch.optim.lr_scheduler.LambdaLR(outer, factor)
        return {"optimizer": outer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

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
        return self.episodes[self._turn]

    def _current_episode(self) -> Episode:
        turn, where = self._turn, self._where()
        saved, self._saved_episodes[turn] = self._saved_episodes[turn], None
        episode = self.episodes[turn] if saved is None else self.source.restore(saved, self.optimizer, **where)
        if episode is None or episode.is_over:
            number, self._next_episode = self._next_episode, self._next_episode + 1
            horizon = self.source.horizon(number, self.global_step / self.meta.outer_steps)
            episode = self.source.begin(number, self.optimizer, horizon, **where)
        self.episodes[turn] = episode
        return episode

    def _decide_on_compilation(self, episode: Episode) -> None:
        self._is_decided = True
        steps = self.meta.outer_steps * self.estimator.window_length(self.meta.truncation, min(self.meta.horizons))
        coordinates = episode.problem.num_problems * episode.problem.params.layout.numel
        mode = choose(
            self._compile,
            self.estimator,
            inner_steps=steps,
            coordinates=coordinates,
            architectures=self.task.num_architectures,
        )
        if mode:
            self.estimator.compile_steps(whole=mode == "step")

    def _estimate(self, episode: Episode, count: int) -> Estimate:
        parameters = dict(self.optimizer.named_parameters())
        if not self._is_decided:
            self._decide_on_compilation(episode)
        window = Window(self.optimizer, parameters, episode.problem, episode.carry, episode.age, count, self.objective)
        while True:
            try:
                return self.estimator(window)
            except CompileError as error:
                self._compile_less(error)

    def _compile_less(self, error: CompileError) -> None:
        """After a step that cannot be compiled: another try by `auto`, else the error for the user."""
        whole = self.estimator.compiles_whole_steps
        if self._compile != "auto":
            what, other = ("inner step", "update or compile=false") if whole else ("optimizer's update", "false")
            raise CompileError(f"compile={self._compile}: the {what} {error}; use compile={other}") from error
        if whole:
            log.warning("compile=auto: the inner step %s; the optimizer's update is compiled alone", error)
            self.estimator.compile_steps(whole=False)
        else:
            log.warning("compile=auto: the optimizer's update %s; nothing is compiled", error)
            self.estimator.stop_compiling()

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        """Unroll the windows of an outer step; the loss that is returned has the meta-gradient as its gradient."""
        del batch, batch_idx
        began, count = time.perf_counter(), self.meta.windows
        windows = [self._window() for _ in range(count)]
        fine = [w for w in windows if w.is_fine] or windows[:1]  # a step without any is skipped as a whole
        if len(fine) < count and fine[0].is_fine:
            self._leave_out(count - len(fine))
        self._metrics = {
            "outer_loss": sum(float(w.outer_loss) for w in fine) / len(fine),
            "diverged_frac": sum(w.diverged for w in windows) / count,
            "unroll_length": sum(w.horizon for w in windows) / count,
            "task_steps_per_s": sum(w.task_steps for w in windows) / (time.perf_counter() - began),
        }
        gradients = [torch.stack(parts).mean(0) for parts in zip(*(w.gradient for w in fine), strict=True)]
        outer_loss = torch.stack([w.outer_loss for w in fine]).mean()
        return _Surrogate.apply(
            outer_loss, 1.0 if fine[0].is_fine else math.nan, gradients, *self.optimizer.parameters()
        )

    def _window(self) -> _Window:
        self._turn, self._windows = self._windows % self.meta.episodes, self._windows + 1
        episode = self._current_episode()
        count = self.estimator.window_length(self.meta.truncation, episode.horizon)
        estimate = self._estimate(episode, count)
        episode.carry, episode.age = estimate.carry, episode.age + count
        gradient = [estimate.gradient[name] for name, _ in self.optimizer.named_parameters()]
        diverged = ~torch.isfinite(estimate.losses).all(0)
        broken = diverged.any() | ~torch.isfinite(estimate.carry.params.flat).all()
        if self.meta.windows > 1:
            gradient = self._clipped(gradient)
            broken = broken | ~torch.stack([torch.isfinite(g).all() for g in gradient]).all()
        # All processes must leave a window out alike, whatever they exchange for the gradient.
        numbers = torch.stack([estimate.outer_loss, diverged.to(estimate.outer_loss).mean(), broken])
        numbers = mean_over_processes(numbers)
        is_fine = numbers[2].item() == 0
        if not is_fine:
            self.episodes[self._turn] = None  # it starts anew
        steps = count * self.meta.num_problems
        return _Window(numbers[0], gradient, is_fine, numbers[1].item(), episode.horizon, steps)

    def _clipped(self, gradient: list[Tensor]) -> list[Tensor]:
        """The gradient of all processes; one window of several must not outweigh the others."""
        flat = torch.cat([g.flatten() for g in gradient])
        if not self.estimator.averages_processes:
            flat = mean_over_processes(flat)
        if self.meta.gradient_clip is not None:
            flat = flat * (self.meta.gradient_clip / (flat.norm() + EPS)).clamp_max(1)
        return [part.view_as(g) for part, g in zip(flat.split([g.numel() for g in gradient]), gradient, strict=True)]

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
        self.episodes[self._turn] = None
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

    # Validation: always the same fresh problems, so that checkpoints are compared in pairs.

    def validation_step(self, batch: int, batch_idx: int) -> None:
        """Run the optimizer on problems of the validation split, of all members of a mixture.

        Each member has its share of the problems, two at least. A mixture's score is the mean of its members'
        `relative_score`.
        """
        del batch, batch_idx
        where = self._where()
        if where["world_size"] > 1 and self.estimator.averages_processes:
            check_same_weights(self.optimizer)
        members = self.task.members()
        metrics: dict[str, Tensor] = {}
        scores: list[Tensor] = []
        for name, task in members:
            found, score = self._validate(task, where, mixed=len(members) > 1)
            metrics |= {f"val/{name}/{key}": value for key, value in found.items()}
            scores.append(score)
        metrics["val/score"] = torch.stack(scores).mean()
        self.log_dict(metrics, sync_dist=where["world_size"] > 1, batch_size=1)

    def _validate(self, task: Task, where: dict[str, Any], *, mixed: bool) -> tuple[dict[str, Tensor], Tensor]:
        """Metrics and score of one task, or of one member of a mixture."""
        count, processes = self.meta.val_problems, where["world_size"]
        if mixed:
            count = max(2, count // len(self.task.members()))
        share = -(-count // processes)
        keys = ProblemKeys(self.seed, "val", 0, range(where["rank"] * share, (where["rank"] + 1) * share))
        problem = task.sample(keys, device=where["device"], dtype=where["dtype"])
        carry, losses = run(self.optimizer, problem, self.meta.val_horizon)
        final = final_loss(problem, carry, losses[-1]).double()
        after = losses[1:].double()
        metrics = {
            "final_loss": final.mean(),
            "auc": after.mean(),
            "diverged_frac": (~torch.isfinite(losses).all(0)).double().mean(),
        }
        if mixed:
            return metrics, relative_score(losses)
        score = after.mean() if task.can_be_negative else (after + EPS).log().mean()
        return metrics, torch.where(torch.isfinite(score), score, torch.inf)

    def test_step(self, batch: int, batch_idx: int) -> None:
        """The same as a validation, for `trainer.test`."""
        self.validation_step(batch, batch_idx)

    def test_dataloader(self) -> range:
        """One item."""
        return range(1)

    # Checkpoints hold all that a resume needs.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the configuration and the episode, over all processes."""
        under_way = [None if e is None or e.is_over else self._gather(save(e)) for e in self.episodes]
        checkpoint[checkpoints.KEY] = {
            "config": self.config,
            "seed": self.seed,
            "outer_step": self.global_step,
            "episodes": under_way,
            "windows": self._windows,
            "next_episode": self._next_episode,
            "skipped_steps": self.skipped_steps,
            "windows_left_out": self.windows_left_out,
        }

    def _gather(self, saved: dict[str, Any]) -> dict[str, Any]:
        if self.trainer.world_size == 1:
            return saved

        def join(x: Tensor) -> Tensor:
            # Process 0 writes the file, so that only it needs the memory.
            parts = [torch.empty_like(x) for _ in range(self.trainer.world_size)] if self.global_rank == 0 else None
            torch.distributed.gather(x.contiguous(), parts)
            return x if parts is None else torch.cat(parts)

        return saved | {
            "params": join(saved["params"]),
            "state": [join(x) for x in saved["state"]],
            "buffers": {name: join(b) for name, b in saved["buffers"].items()},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the episode up again."""
        saved = checkpoint[checkpoints.KEY]
        if len(saved["episodes"]) != self.meta.episodes:
            raise ValueError(f"meta.episodes={self.meta.episodes}: the checkpoint has {len(saved['episodes'])} of them")
        self._saved_episodes, self.episodes = list(saved["episodes"]), [None] * self.meta.episodes
        self._windows, self.windows_left_out = saved["windows"], saved["windows_left_out"]
        self._next_episode, self.skipped_steps = saved["next_episode"], saved["skipped_steps"]
