"""`evaluate.py`: checkpoints and baselines on the same test problems."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger

from ph_l2o.checkpoints import SHIPPED, load_checkpoint, load_weights
from ph_l2o.checks import at_least, did_you_mean
from ph_l2o.commands.folders import conf_dir
from ph_l2o.commands.instantiate import build, build_loggers, import_plugins
from ph_l2o.commands.log_results import log_comparison, log_suite
from ph_l2o.commands.numerics import set_up_torch
from ph_l2o.commands.overrides import overrides_of
from ph_l2o.commands.recording import finish_wandb, held, plain_config, recorded, save_config
from ph_l2o.commands.reporting import report
from ph_l2o.commands.run_claims import evaluate_claims, has_claims
from ph_l2o.commands.run_comparison import compare_and_save, diagnose_and_save
from ph_l2o.commands.run_suite import build_suite, compare_suite_and_save
from ph_l2o.commands.strategies import check_one_process
from ph_l2o.commands.sweeps.multirun import is_multirun
from ph_l2o.commands.sweeps.sweep_jobs import take_up
from ph_l2o.commands.validate import check_counts, check_start, validate_common
from ph_l2o.errors import ConfigError
from ph_l2o.evaluation.baselines import names, unknown
from ph_l2o.evaluation.modes import InMode
from ph_l2o.evaluation.suite_comparison import check_reference
from ph_l2o.files import git_revision
from ph_l2o.meta import WandbRun
from ph_l2o.processes import Processes

log = logging.getLogger(__name__)


def run_evaluation(cfg: DictConfig) -> None:
    """Evaluate as configured."""
    if has_claims(cfg):
        return evaluate_claims(cfg)
    folder = Path(cfg.paths.output_dir)
    if not is_multirun():
        _run(cfg, folder)
        return
    with held(folder, wait=True):
        if take_up(cfg, folder).status is None:
            _run(cfg, folder)


def _run(cfg: DictConfig, folder: Path) -> None:
    try:
        optimizers, tasks, device = _prepare(cfg)
        loggers = build_loggers(cfg)  # last, since they may begin to write
    except BaseException:
        finish_wandb(1)
        raise
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    config |= {"git_revision": git_revision(), "overrides": overrides_of(HydraConfig.get())}
    with recorded(folder):
        save_config(folder, config)
        for logger in loggers:
            logger.log_hyperparams(plain_config(config))
            if isinstance(logger, WandbRun):
                for path in _checkpoints(cfg):
                    logger.use_checkpoint(path)
        _evaluate(cfg, folder, optimizers, tasks, device, loggers)
    report(folder)


def _evaluate(
    cfg: DictConfig, folder: Path, optimizers: dict[str, Any], tasks: Any, device: str, loggers: list[Logger]
) -> None:
    settings = {
        "num_problems": cfg.num_problems,
        "tuning_problems": cfg.tuning_problems,
        "seed": cfg.seed,
        "cache_dir": Path(cfg.paths.cache),
        "device": device,
    }
    with _processes(cfg, optimizers, tasks) as processes:
        settings["processes"] = processes
        if isinstance(tasks, dict):
            settings |= {"tuning_problems": cfg.tuning_problems or 2, "reference": cfg.reference}
            suite = compare_suite_and_save(optimizers, tasks, folder, name=_suite_name(), **settings)
            log_suite(loggers, *suite)
        else:
            comparison = compare_and_save(optimizers, tasks, folder, horizon=cfg.horizon, **settings)
            log_comparison(loggers, comparison, folder)
            if cfg.diagnostics:
                diagnose_and_save(optimizers, tasks, folder, horizon=cfg.horizon, seed=cfg.seed, loggers=loggers)


def _processes(
    cfg: DictConfig, optimizers: dict[str, Any], tasks: Any
) -> contextlib.AbstractContextManager[Processes | None]:
    if cfg.num_processes == 1:
        return contextlib.nullcontext()
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    return Processes(cfg.num_processes, functools.partial(_parts_of_worker, config), _parts(optimizers, tasks))


def _parts_of_worker(config: dict[str, Any]) -> dict[str, Any]:
    """What this process has, in one that works for it."""
    cfg = OmegaConf.create(config)
    set_up_torch(cfg.num_threads)
    import_plugins(cfg.plugins)
    optimizers, tasks = _built(cfg, check=False)
    return _parts(optimizers, tasks)


def _parts(optimizers: dict[str, Any], tasks: Any) -> dict[str, Any]:
    """What is made of a configuration."""
    found = {f"optimizers.{n}": o for n, o in optimizers.items() if not isinstance(o, str)}
    if not isinstance(tasks, dict):
        return found | {"task": tasks}
    return found | {f"suite.{n}": entry.task for n, entry in tasks.items()}


def _checkpoints(cfg: DictConfig) -> list[Path]:
    """The files of checkpoints among the optimizers, each once."""
    entries = [str(entry) for entry in cfg.optimizers if unknown(str(entry)) is not None]
    paths = [Path(entry if Path(entry).is_file() else entry.partition(".ckpt")[0] + ".ckpt") for entry in entries]
    return [path for path in dict.fromkeys(paths) if path.suffix == ".ckpt" and path.is_file()]


def _suite_name() -> str:
    return str(HydraConfig.get().runtime.choices.get("suite"))


def _prepare(cfg: DictConfig) -> tuple[dict[str, Any], Any, str]:
    """Optimizers by name; the task, or the suite's tasks by name; the device."""
    validate_common(cfg)
    check_one_process(cfg.strategy, "evaluate.py")
    if typed := [argument for argument in overrides_of(HydraConfig.get()) if argument.startswith("preset=")]:
        raise ConfigError(f"{typed[0]}: presets are for train.py")
    has_suite = cfg.get("suite") is not None
    if cfg.suite_tasks is not None and not has_suite:
        raise ConfigError(f"suite_tasks={list(cfg.suite_tasks)}: is for a suite; choose one, such as suite=generalise")
    if cfg.diagnostics and has_suite:
        raise ConfigError("diagnostics=true: is for one task; set suite=null and task=… to it")
    at_least("num_processes", cfg.num_processes, 1, "processes")
    check_counts(cfg, "", own_horizons=has_suite)
    check_reference(str(cfg.reference))
    if not cfg.optimizers:
        raise ConfigError("optimizers=[]: name at least one checkpoint or baseline")
    set_up_torch(cfg.num_threads)
    optimizers, tasks = _built(cfg, check=True)
    use_gpu = cfg.strategy.accelerator == "gpu" or (cfg.strategy.accelerator == "auto" and torch.cuda.is_available())
    return optimizers, tasks, "cuda" if use_gpu else "cpu"


def _built(cfg: DictConfig, *, check: bool) -> tuple[dict[str, Any], Any]:
    """Optimizers by name; the task, or the suite's tasks by name, with a check of their losses at the start."""
    task = None if cfg.get("suite") is not None else build(cfg.task, "task", plugins=cfg.plugins)
    optimizers: dict[str, Any] = {}
    for entry in cfg.optimizers:
        name, optimizer = _entry(str(entry), cfg)
        if name in optimizers:
            while name in optimizers:
                name += "'"
            log.info("%s: %s, as that name is taken", name, entry)
        optimizers[name] = optimizer
    if task is None:
        return optimizers, build_suite(cfg, check=check)
    task.prepare()
    if check:
        check_start(task, cfg.seed)
    return optimizers, task


def _entry(entry: str, cfg: DictConfig) -> tuple[str, Any]:
    if unknown(entry) is None:
        return entry, entry
    base, modes = entry, tuple[str, ...]()
    while "+" in base and base not in SHIPPED and not Path(base).exists():
        base, _, mode = base.rpartition("+")
        modes = (mode, *modes)
    if not modes or base in names():
        return _optimizer(entry, cfg)
    name, optimizer = _optimizer(base, cfg)
    try:
        return "+".join((name, *modes)), InMode(optimizer, modes)
    except ValueError as error:
        raise ConfigError(f"optimizers=[…, {entry}]: {error}") from error


def _optimizer(entry: str, cfg: DictConfig) -> tuple[str, Any]:
    """Name and optimizer of an entry that names no baseline, without modes."""
    if entry in SHIPPED:
        return entry, load_weights(SHIPPED[entry])
    if entry in _options():
        raise ConfigError(
            f"optimizers=[…, {entry}]: no weights are shipped with this version; train some with "
            f"`python train.py optimizer={entry}` and give its checkpoints/best.ckpt"
        )
    if entry.endswith(".safetensors"):
        return Path(entry).stem, load_weights(entry, plugins=cfg.plugins)
    if not entry.endswith(".ckpt") and not Path(entry).exists():
        if entry.partition("+")[0] in names():
            raise ConfigError(f"optimizers=[…, {entry}]: {unknown(entry)}")
        hint = did_you_mean(entry, (*names(), *SHIPPED, *_options()))
        raise ConfigError(f"optimizers=[…, {entry}]: neither a checkpoint file nor one of {', '.join(names())}{hint}")
    optimizer, config = load_checkpoint(entry, plugins=cfg.plugins)
    # The name becomes that of files.
    name = _plain_word(config.get("run_name")) or Path(entry).stem
    task = config.get("task")
    trained_on = _plain_word(task.get("_target_")) if isinstance(task, dict) else None
    log.info("%s: %s, trained on %s", name, entry, trained_on or "an unknown task")
    return name, optimizer


def _plain_word(value: Any) -> str | None:
    """A word out of a file, if it is nothing else."""
    return value if isinstance(value, str) and re.fullmatch(r"\w[\w.+=,@-]{0,199}", value) else None


def _options() -> list[str]:
    """Of `train.py optimizer=…`."""
    return [path.stem for path in (Path(conf_dir()) / "optimizer").glob("*.yaml")]
