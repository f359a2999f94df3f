"""`train.py`: meta-train, then compare with tuned baselines."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning.profilers import SimpleProfiler

from ph_l2o.checkpoints import load_checkpoint, load_weights
from ph_l2o.commands.configuration import applied_presets
from ph_l2o.commands.folders import LAST, find_checkpoint
from ph_l2o.commands.instantiate import build, build_loggers
from ph_l2o.commands.log_results import log_comparison
from ph_l2o.commands.numerics import set_up_torch
from ph_l2o.commands.recording import (
    DIVERGED_SCORE,
    close_log_files,
    finish_wandb,
    held,
    plain_config,
    recorded,
    save_config,
)
from ph_l2o.commands.reporting import report
from ph_l2o.commands.resume import settings_of_run, typed_overrides
from ph_l2o.commands.run_claims import has_claims, train_claims
from ph_l2o.commands.run_comparison import compare_and_save
from ph_l2o.commands.searches.trial import check_pruned, trial_callbacks
from ph_l2o.commands.strategies import processes_of_machine, starts_workers
from ph_l2o.commands.sweeps.multirun import is_multirun
from ph_l2o.commands.sweeps.sweep_jobs import take_up
from ph_l2o.commands.validate import best_score, check_resume, check_start, validate_training
from ph_l2o.commands.workers import how_to_resume, run_workers
from ph_l2o.errors import ConfigError, Interrupted, ProcessError, Pruned, WeightsError
from ph_l2o.files import git_revision
from ph_l2o.meta import MetaLearner, ProblemSharing, WandbRun, check_trainer, fit
from ph_l2o.ranks import has_own_folder, is_rank_zero, is_worker

log = logging.getLogger(__name__)


def run_training(cfg: DictConfig) -> float | None:
    """Train as configured.

    Returns:
        The validation score, finite, for sweeps (lower is better); None if workers have it, or the run was pruned.
    """
    if has_claims(cfg):
        return train_claims(cfg)
    folder = Path(cfg.paths.output_dir)
    resume = _resume_path(cfg)
    if not has_own_folder():
        close_log_files()
    if not is_rank_zero():
        logging.disable(logging.WARNING)  # process 0 says the same
    with held(folder, wait=is_multirun()):
        if is_multirun():
            before = take_up(cfg, folder)
            if before.status is not None:
                return before.score
            if before.checkpoint is not None:
                resume = before.checkpoint
                with open_dict(cfg):
                    cfg.ckpt_path = str(resume)
        return _run(cfg, folder, resume)


def _run(cfg: DictConfig, folder: Path, resume: Path | None) -> float | None:
    overrides = typed_overrides()
    try:
        if resume is not None:
            cfg, overrides = settings_of_run(cfg, resume)
        parts = _prepare(cfg, folder, resume)
    except BaseException:
        finish_wandb(1)
        raise
    try:
        with recorded(folder) as result:
            if starts_workers(cfg.strategy) and not parts["is_trained"]:
                del parts  # its memory
                close_log_files()
                where = {"num_nodes": cfg.strategy.num_nodes, "timeout": cfg.strategy.timeout}
                score = run_workers(processes_of_machine(cfg.strategy), folder, resume, **where)
            else:
                score = _train(cfg, overrides, parts, folder, resume)
            result["score"] = score
        if is_rank_zero() and not is_worker():
            report(folder)
        return score
    except Pruned as ended:
        log.info("%s", ended)
        return None
    except (KeyboardInterrupt, Interrupted) as error:
        number = error.number if isinstance(error, Interrupted) else signal.SIGINT
        how = "the same command goes on with this sweep" if is_multirun() else how_to_resume(folder)
        raise Interrupted(number, how) from error


def _prepare(cfg: DictConfig, folder: Path, resume: Path | None) -> dict[str, Any]:
    """Everything that can be wrong with the configuration is found here, before any work."""
    validate_training(cfg)
    set_up_torch(cfg.num_threads)
    plugins = list(cfg.plugins)
    torch.manual_seed(cfg.seed)
    parts = {name: build(cfg[name], name, plugins=plugins) for name in ("task", "estimator", "meta", "optimizer")}
    parts["meta"].check_truncation(parts["estimator"])
    parts["callbacks"] = [
        build(node, f"callbacks.{k}", plugins=plugins) for k, node in (cfg.callbacks or {}).items() if node
    ]
    parts["callbacks"] += trial_callbacks()
    parts["make_trainer"] = build(cfg.trainer, "trainer", plugins=plugins)
    check_trainer(key for key in cfg.trainer if not key.startswith("_"))
    if cfg.weights is not None and resume is None:
        start_from(str(cfg.weights), parts["optimizer"])
    if cfg.trainer.precision == "64-true":
        parts["optimizer"].double()
    is_trained = resume is not None and check_resume(resume, cfg, parts["optimizer"], parts["meta"], folder)
    parts["is_trained"] = is_trained
    parts["task"].prepare()
    check_start(parts["task"], cfg.seed)
    if starts_workers(cfg.strategy) and not parts["is_trained"]:
        return parts
    # Last, since they may begin to write.
    parts["loggers"] = build_loggers(cfg)
    return parts


def start_from(weights: str, optimizer: Any) -> None:
    """Give an optimizer the meta-parameters of a file.

    Raises:
        ConfigError: If there is no such file, or it fits another optimizer.
    """
    try:
        optimizer.load_state_dict(load_weights(weights).state_dict())
    except (OSError, WeightsError) as error:
        raise ConfigError(f"weights={weights}: {error}") from error
    except RuntimeError as error:
        raise ConfigError(
            f"weights={weights}: has other meta-parameters than {type(optimizer).__name__} with these settings; "
            "set optimizer as it was trained, or weights=null"
        ) from error


def _resume_path(cfg: DictConfig) -> Path | None:
    if cfg.ckpt_path is None:
        return None
    return find_checkpoint(str(cfg.ckpt_path), cfg.paths.runs, cfg.run_name)


def _train(cfg: DictConfig, overrides: list[str], parts: dict[str, Any], folder: Path, resume: Path | None) -> float:
    for noisy in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(noisy).setLevel(logging.WARNING)  # Lightning sets INFO when it is imported
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    config |= {"git_revision": git_revision(), "overrides": overrides}
    if is_rank_zero():
        save_config(folder, config)
    parameters = sum(p.numel() for p in parts["optimizer"].parameters())
    log.info(
        "%s (%d meta-parameters) on %s, %d outer steps, in %s",
        type(parts["optimizer"]).__name__, parameters, cfg.task._target_.rpartition(".")[2], cfg.meta.outer_steps,
        os.path.relpath(folder),
    )  # fmt: skip
    presets = applied_presets()
    if presets:
        log.info("presets: %s", ", ".join(presets))
    if resume is not None:
        log.info("resuming from %s", resume)
    for logger in parts["loggers"]:
        logger.log_hyperparams(plain_config(config))
        if isinstance(logger, WandbRun) and cfg.weights is not None:
            logger.use_checkpoint(Path(cfg.weights))
    if parts["is_trained"]:
        log.info("meta-training is done%s", "; the comparison is not" if cfg.compare else "")
        score = best_score(folder / LAST)
    else:
        score = _meta_train(cfg, config, parts, folder, resume)
        check_pruned(parts["callbacks"])
    if is_rank_zero() and cfg.compare:
        _compare(cfg, parts, folder)
    return score if math.isfinite(score) else DIVERGED_SCORE


def _meta_train(
    cfg: DictConfig, config: dict[Any, Any], parts: dict[str, Any], folder: Path, resume: Path | None
) -> float:
    """The best validation score."""
    began = time.monotonic()
    learner = MetaLearner(
        parts["optimizer"],
        parts["task"],
        parts["estimator"],
        parts["meta"],
        seed=cfg.seed,
        config=plain_config(config),
        compile=cfg.compile,
    )
    more = {name: parts[name] for name in ("loggers", "callbacks", "make_trainer")}
    trainer = _fit(cfg, learner, folder, resume, **more)
    log.info("meta-training took %.0f s", time.monotonic() - began)
    if isinstance(trainer.profiler, SimpleProfiler):  # its own lines are silenced with Lightning's others
        log.info("%s", trainer.profiler.summary().strip())
    for logger in parts["loggers"]:
        if isinstance(logger, WandbRun):
            logger.log_checkpoints(folder / LAST.parent)
    score = trainer.checkpoint_callbacks[0].best_model_score  # type: ignore[union-attr]
    return float(score) if score is not None else math.inf


def _fit(cfg: DictConfig, learner: Any, folder: Path, resume: Path | None, **more: Any) -> Any:
    strategy = cfg.strategy.strategy
    if strategy == "ddp":
        strategy = ProblemSharing(average=not learner.estimator.averages_processes, timeout=cfg.strategy.timeout)
    devices = {"accelerator": cfg.strategy.accelerator, "devices": cfg.strategy.devices, "strategy": strategy}
    devices["num_nodes"] = cfg.strategy.get("num_nodes", 1)
    try:
        return fit(learner, folder, ckpt_path=resume, **more, **devices)
    except ProcessError as error:
        raise ProcessError(f"{error}; {how_to_resume(folder)}") from error


def _compare(cfg: DictConfig, parts: dict[str, Any], folder: Path) -> None:
    best, _ = load_checkpoint(folder / "checkpoints" / "best.ckpt", plugins=cfg.plugins)
    from hydra.core.hydra_config import HydraConfig

    name = HydraConfig.get().runtime.choices["optimizer"]
    baselines = list(cfg.evaluation.baselines)
    label = f"{name} (trained)" if name in baselines else name
    comparison = compare_and_save(
        {label: best, **{b: b for b in baselines}},
        parts["task"],
        folder,
        horizon=cfg.evaluation.horizon,
        num_problems=cfg.evaluation.num_problems,
        tuning_problems=cfg.evaluation.tuning_problems,
        seed=cfg.seed,
        cache_dir=Path(cfg.paths.runs) / "cache",
    )
    log_comparison(parts["loggers"], comparison, folder, trained=label)
