"""On which devices and in how many processes a command runs, checked before it starts."""

from __future__ import annotations

import os
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig
from pytorch_lightning.plugins.environments import LSFEnvironment, MPIEnvironment  # type: ignore[attr-defined]

from ph_l2o.errors import ConfigError
from ph_l2o.ranks import is_rank_zero, started_processes


def processes_of_machine(strategy: Any) -> int:
    """Processes that a strategy asks for on each machine."""
    if strategy.strategy != "ddp":
        return 1
    return torch.cuda.device_count() if strategy.devices == "auto" else strategy.devices


def starts_workers(strategy: Any) -> bool:
    """Whether this process is to start others, since nothing else did."""
    return processes_of_machine(strategy) > 1 and not _is_started()


def check_device(strategy: Any) -> None:
    """Raise ConfigError for an accelerator that is unknown or not there."""
    if strategy.accelerator not in ("cpu", "gpu", "auto"):
        raise ConfigError(f"strategy.accelerator={strategy.accelerator}: must be cpu, gpu or auto")
    if strategy.accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError(
            f"strategy.accelerator=gpu (strategy={choice('strategy')}): no GPU is visible here; "
            "use strategy=cpu, or strategy=ddp_cpu for several processes"
        )


def check_one_process(strategy: Any, command: str) -> None:
    """Raise ConfigError where a command that runs in one process is asked for several, or was started several times."""
    if strategy.strategy == "ddp":
        raise ConfigError(
            f"strategy={choice('strategy')}: {command} runs in one process; use strategy=auto, cpu or gpu"
        )
    if strategy.strategy != "auto":
        raise ConfigError(f"strategy.strategy={strategy.strategy}: must be auto (one process) or ddp (several)")
    hint = "for several processes, use train.py with strategy=ddp (GPUs) or strategy=ddp_cpu"
    one_of_many = command == "train.py" and isinstance(strategy.devices, ListConfig) and len(strategy.devices) == 1
    for key in ("devices", "num_nodes"):
        if strategy.get(key, 1) != 1 and not (key == "devices" and one_of_many):
            raise ConfigError(f"strategy.{key}={strategy[key]}: must be 1 with strategy={choice('strategy')}; {hint}")
    started = started_processes()
    # In a batch script, SLURM's variables are those of a first task, which is alone.
    if started is not None and started[1] > 1 and (started[0] == "torchrun" or not is_rank_zero()):
        raise ConfigError(
            f"strategy={choice('strategy')}: runs in one process, but {started[0]} started {started[1]}; {hint}"
        )


def check_sharing(cfg: DictConfig) -> None:
    """Raise ConfigError where the processes of `strategy=ddp` can't share the problems out."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if HydraConfig.get().mode == RunMode.MULTIRUN:
        raise ConfigError(
            f"strategy={choice('strategy')}: can't run inside a multirun, where each process would start a sweep of "
            "its own; use strategy=cpu or gpu there, or run the jobs one by one"
        )
    strategy = cfg.strategy
    if strategy.devices == "auto" and strategy.accelerator == "cpu":
        raise ConfigError("strategy.devices=auto: counts GPUs; must be a whole number >= 1 on the CPU")
    devices, nodes = processes_of_machine(strategy), strategy.num_nodes
    for key, value, what in (("devices", devices, "processes of a machine"), ("num_nodes", nodes, "machines")):
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"strategy.{key}={value}: must be a whole number >= 1 ({what})")
    if strategy.accelerator == "gpu" and devices > torch.cuda.device_count():
        raise ConfigError(f"strategy.devices={devices}: only {torch.cuda.device_count()} GPUs are visible here")
    timeout = strategy.timeout
    if not isinstance(timeout, int | float) or not 0 < timeout < 1e6:
        raise ConfigError(f"strategy.timeout={timeout}: must be > 0 and < 1e6 (seconds)")
    _check_shares(cfg, devices, nodes)
    if nodes > 1 and not _is_started():
        _check_meeting_point(nodes)


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


def _check_meeting_point(nodes: int) -> None:
    if any(variable not in os.environ for variable in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")):
        raise ConfigError(
            f"strategy.num_nodes={nodes}: start the command on each machine with torchrun or srun, or set NODE_RANK, "
            "MASTER_ADDR and MASTER_PORT there (docs/scaling.md)"
        )
    if os.environ["NODE_RANK"] not in map(str, range(nodes)):
        raise ConfigError(
            f"NODE_RANK={os.environ['NODE_RANK']}: must be 0 to {nodes - 1}, with strategy.num_nodes={nodes}"
        )


def _is_started() -> bool:
    """Whether something else starts all processes: `torchrun`, `srun`, another scheduler, or the user's own script."""
    clusters = LSFEnvironment, MPIEnvironment
    return started_processes() is not None or "LOCAL_RANK" in os.environ or any(c.detect() for c in clusters)


def choice(group: str) -> str:
    """The option that was chosen of a group of the configuration."""
    from hydra.core.hydra_config import HydraConfig

    return str(HydraConfig.get().runtime.choices[group])
