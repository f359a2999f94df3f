"""Checks of a whole configuration, before any work starts. What one class can check, its constructor checks."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from omegaconf import DictConfig

from ph_l2o.checkpoints import KEY, read_checkpoint
from ph_l2o.commands.folders import LAST
from ph_l2o.commands.instantiate import import_plugins
from ph_l2o.commands.recording import read_status
from ph_l2o.commands.strategies import check_device, check_one_process, check_sharing
from ph_l2o.commands.sweeps.multirun import is_multirun
from ph_l2o.compilation import checked
from ph_l2o.errors import ConfigError
from ph_l2o.evaluation.baselines import unknown
from ph_l2o.inner import value_and_gradient
from ph_l2o.keys import ProblemKeys
from ph_l2o.meta import MetaSettings
from ph_l2o.meta.resume import check_left, check_optimizer, check_resumable
from ph_l2o.optimizers import LearnedOptimizer
from ph_l2o.tasks import Task


def validate_common(cfg: DictConfig) -> None:
    """What both commands have.

    Raises:
        ConfigError: Naming key, value and what is allowed.
    """
    if not isinstance(cfg.seed, int) or not 0 <= cfg.seed < 2**63:
        raise ConfigError(f"seed={cfg.seed}: must be a whole number >= 0")
    if cfg.num_threads is not None and (not isinstance(cfg.num_threads, int) or cfg.num_threads < 1):
        raise ConfigError(f"num_threads={cfg.num_threads}: must be a whole number >= 1, or null")
    check_device(cfg.strategy)
    import_plugins(cfg.plugins)


def validate_training(cfg: DictConfig) -> None:
    """What `train.py` needs.

    Raises:
        ConfigError: Naming key, value and what is allowed.
    """
    validate_common(cfg)
    check_counts(cfg.evaluation, "evaluation.")
    check_baselines(cfg.evaluation.baselines, "evaluation.baselines")
    if cfg.strategy.strategy == "ddp":
        check_sharing(cfg)
    else:
        check_one_process(cfg.strategy, "train.py")
    checked(cfg.compile)


def check_counts(node: DictConfig, prefix: str, *, own_horizons: bool = False) -> None:
    """Sizes of a comparison; with `own_horizons` of its tasks, the horizon may be null."""
    for key, least, what in (("horizon", 1, "inner steps"), ("num_problems", 2, "test problems")):
        value = node[key]
        if key == "horizon" and value is None and own_horizons:
            continue
        if not isinstance(value, int) or value < least:
            raise ConfigError(f"{prefix}{key}={value}: must be a whole number >= {least} ({what})")
    value = node.tuning_problems
    if value is not None and (not isinstance(value, int) or value < 2):
        raise ConfigError(f"{prefix}tuning_problems={value}: must be a whole number >= 2, or null")


def check_baselines(names: list[str], key: str) -> None:
    """Names of classical optimizers."""
    for name in names:
        if problem := unknown(str(name)):
            raise ConfigError(f"{key}=[…, {name}]: {problem}")


def check_start(task: Task, seed: int) -> None:
    """Evaluate loss and gradient of two problems at their start, of each member of a mixture.

    Raises:
        ConfigError: If they are not finite, or not one loss for each problem.
    """
    members = task.members()
    for name, member in members:
        _check_start(member, seed, f"{task.name}.{name}" if len(members) > 1 else task.name)


def _check_start(task: Task, seed: int, name: str) -> None:
    problem = task.sample(ProblemKeys(seed, "train", 0, range(2)))
    batch = next(iter(problem.batches(0, 1)))
    loss, gradient, _ = value_and_gradient(problem, problem.params, problem.buffers, batch)
    if loss.shape != (2,):
        raise ConfigError(f"task={name}: the loss has shape {tuple(loss.shape)} for 2 problems; must be (2,)")
    for what, value in (("loss", loss), ("gradient", gradient.flat)):
        if not torch.isfinite(value).all():
            bad = value[~torch.isfinite(value)].flatten()[0].item()
            raise ConfigError(f"task={name}: the {what} at the start θ₀ is {bad}; must be finite, so mend the task")


def check_resume(path: Path, cfg: DictConfig, optimizer: LearnedOptimizer, meta: MetaSettings, folder: Path) -> bool:
    """Whether a run that is resumed has done all outer steps, and only its comparison is missing.

    Of a job of a sweep, also what comes after: it may have been killed between its last checkpoint and its end.

    Raises:
        CheckpointError: If the file is damaged, not one of ours, of another optimizer, or lacks what a resume needs.
        ValueError: If there is nothing left to do.
    """
    content = read_checkpoint(path)
    check_optimizer(content, optimizer, path)
    check_resumable(content, optimizer, meta, path)
    is_own = path.absolute() == (folder / LAST).absolute()
    compared = (folder / "comparison.json").is_file() and read_status(folder).get("status") == "ok"
    if content[KEY]["outer_step"] == meta.outer_steps and (cfg.compare or is_multirun()) and is_own and not compared:
        return True
    check_left(content, meta, path)
    return False


def best_score(path: Path) -> float:
    """The best validation score that a checkpoint knows of."""
    states = read_checkpoint(path)["callbacks"].values()
    scores = [s["best_model_score"] for s in states if isinstance(s, dict) and s.get("monitor") == "val/score"]
    return min((float(score) for score in scores if score is not None), default=math.inf)
