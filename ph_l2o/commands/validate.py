"""Checks of a whole configuration, before any work starts. What one class can check, its constructor checks."""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import DictConfig

from ph_l2o.checkpoints import KEY, read_checkpoint
from ph_l2o.commands.instantiate import import_plugins
from ph_l2o.compilation import checked
from ph_l2o.errors import CheckpointError, ConfigError
from ph_l2o.evaluation.baselines import unknown
from ph_l2o.inner import value_and_gradient
from ph_l2o.keys import ProblemKeys
from ph_l2o.optimizers import LearnedOptimizer
from ph_l2o.ranks import started_processes
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
    _check_device(cfg)
    import_plugins(cfg.plugins)


def validate_training(cfg: DictConfig) -> None:
    """What `train.py` needs.

    Raises:
        ConfigError: Naming key, value and what is allowed.
    """
    validate_common(cfg)
    check_counts(cfg.evaluation, "evaluation.")
    check_baselines(cfg.evaluation.baselines, "evaluation.baselines")
    _check_processes(cfg)
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


def _check_device(cfg: DictConfig) -> None:
    if cfg.strategy.accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError(
            f"strategy.accelerator=gpu (strategy={_choice('strategy')}): no GPU is visible here; "
            "use strategy=cpu, or strategy=ddp_cpu for several processes"
        )


def _check_processes(cfg: DictConfig) -> None:
    if cfg.strategy.strategy != "ddp":
        return
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if HydraConfig.get().mode == RunMode.MULTIRUN:
        raise ConfigError(
            f"strategy={_choice('strategy')}: can't run inside a multirun, where each process would start a sweep of "
            "its own; use strategy=cpu or gpu there, or run the jobs one by one"
        )
    devices, nodes = cfg.strategy.devices, cfg.strategy.num_nodes
    if not isinstance(devices, int):
        devices = torch.cuda.device_count()
    for key, value, what in (("devices", devices, "processes of a machine"), ("num_nodes", nodes, "machines")):
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"strategy.{key}={value}: must be a whole number >= 1 ({what})")
    timeout = cfg.strategy.timeout
    if not isinstance(timeout, int | float) or not 0 < timeout < 1e6:
        raise ConfigError(f"strategy.timeout={timeout}: must be > 0 and < 1e6 (seconds)")
    _check_shares(cfg, devices, nodes)


def _check_shares(cfg: DictConfig, devices: int, nodes: int) -> None:
    started = started_processes()
    if started is not None and started[1] != devices * nodes:
        raise ConfigError(
            f"strategy.num_nodes={nodes}: with strategy.devices={devices} that is {devices * nodes} processes, but "
            f"{started[0]} started {started[1]}; must be the same"
        )
    processes = f"strategy.devices={devices}" + (f" · strategy.num_nodes={nodes}" if nodes > 1 else "")
    for key in ("num_problems", "val_problems"):
        if cfg.meta[key] % (devices * nodes):
            raise ConfigError(
                f"meta.{key}={cfg.meta[key]}: must be a multiple of {processes}, the processes that share the "
                "problems out"
            )


def _choice(group: str) -> str:
    from hydra.core.hydra_config import HydraConfig

    return str(HydraConfig.get().runtime.choices[group])


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


def check_resume(path: Path, cfg: DictConfig, optimizer: LearnedOptimizer) -> None:
    """Whether a checkpoint can be resumed with this configuration.

    Raises:
        CheckpointError: If the file is damaged, not one of ours, or of another optimizer.
        ConfigError: If it has done all outer steps already.
    """
    content = read_checkpoint(path)
    shapes = {f"optimizer.{k}": v.shape for k, v in optimizer.state_dict().items()}
    if {k: v.shape for k, v in content["state_dict"].items()} != shapes:
        raise CheckpointError(
            f"ckpt_path={path}: holds another optimizer than optimizer={_choice('optimizer')} with these settings; "
            "resume with the settings of the run, which are in its config.yaml"
        )
    done = content[KEY]["outer_step"]
    if done >= cfg.meta.outer_steps:
        raise ConfigError(
            f"meta.outer_steps={cfg.meta.outer_steps}: the checkpoint {path} has done {done} already; ask for more"
        )
