"""`experiment=study…`: train what claims of the published study need, measure them, and write their page."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from ph_l2o.claims.figures import write_figures
from ph_l2o.claims.page import load_results, write_page
from ph_l2o.claims.parsing import parse_claims
from ph_l2o.claims.results import Bench, claim_result
from ph_l2o.claims.spec import Claim, needed_trainings
from ph_l2o.claims.weights import Found, export
from ph_l2o.commands.claim_trainings import find_weights, planned, train_missing
from ph_l2o.commands.instantiate import build
from ph_l2o.commands.numerics import set_up_torch
from ph_l2o.commands.overrides import overrides_of
from ph_l2o.commands.recording import hold, recorded, save_config
from ph_l2o.commands.sweeps.multirun import is_multirun
from ph_l2o.commands.validate import check_start, validate_common
from ph_l2o.errors import ConfigError
from ph_l2o.files import git_revision, json_text, write_atomically
from ph_l2o.tasks import Task

log = logging.getLogger(__name__)

DOCS = Path("docs")
RESULTS, WEIGHTS, IMAGES = Path("results") / "study", Path("weights"), Path("images")
_TAKEN = (
    "claim", "claims", "debug", "experiment", "hydra", "num_processes", "num_threads", "paths", "plugins", "run_name",
    "seed",
)  # fmt: skip


def has_claims(cfg: DictConfig) -> bool:
    """Whether the configuration is one of claims."""
    return bool(cfg.get("claims"))


def train_claims(cfg: DictConfig) -> None:
    """Train what is missing, then measure."""
    _run(cfg, train=True)


def evaluate_claims(cfg: DictConfig) -> None:
    """Measure with what is there."""
    _run(cfg, train=False)


def _run(cfg: DictConfig, *, train: bool) -> None:
    folder = Path(cfg.paths.output_dir)
    claims = _checked(cfg)
    docs = _docs(cfg, folder)
    claims, runs = _shrunk(claims, cfg), _runs(cfg, folder)
    places = [docs] if _debug() else [docs, DOCS]  # beside the results, and those that come with the project
    plans = planned(needed_trainings(claims.values()), runs, *(place / RESULTS / WEIGHTS for place in places))
    command = f"python train.py experiment={HydraConfig.get().runtime.choices.get('experiment') or 'study'}"
    weights = None if train else find_weights(plans, cfg.plugins, command)  # what is missing is told before any work
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    config |= {"git_revision": git_revision(), "overrides": overrides_of(HydraConfig.get())}
    with recorded(folder):
        save_config(folder, config)
        if weights is None:
            train_missing(plans, cfg)
            weights = find_weights(plans, cfg.plugins, command)
        _measure(claims, weights, cfg, runs, docs)


def _checked(cfg: DictConfig) -> dict[str, Claim]:
    validate_common(cfg)
    if is_multirun():
        raise ConfigError("--multirun: the claims of the study are one run; num_processes=2 trains two at once")
    if not isinstance(cfg.num_processes, int) or cfg.num_processes < 1:
        raise ConfigError(f"num_processes={cfg.num_processes}: must be a whole number >= 1 (trainings at once)")
    for name in ("claims", "docs"):
        path = cfg.paths[name]
        if path is not None and Path(path).exists() and not Path(path).is_dir():
            raise ConfigError(f"paths.{name}={path}: is no folder; choose another")
    for override in overrides_of(HydraConfig.get()):
        key = override.lstrip("+~").partition("=")[0]
        if key.partition(".")[0].partition("@")[0].partition("/")[0] not in _TAKEN:
            raise ConfigError(
                f"{override}: is not taken by claims, whose trainings and measurements have settings of their own "
                "(claims.…; `--cfg job` prints all)"
            )
    node: Any = OmegaConf.to_container(cfg.claims, resolve=True)
    return parse_claims(node)


def _docs(cfg: DictConfig, folder: Path) -> Path:
    """Where the page goes: what has other settings than the claims' files does not replace what is published."""
    if cfg.paths.docs is not None:
        return Path(cfg.paths.docs)
    if not DOCS.is_dir() or _debug():
        return folder
    if own := [o for o in overrides_of(HydraConfig.get()) if o.lstrip("+~").startswith(("claims.", "seed="))]:
        log.info("%s: the claims are not as they stand, so their page goes into the run's folder", own[0])
        return folder
    return DOCS


def _runs(cfg: DictConfig, folder: Path) -> Path:
    return folder / "trainings" if _debug() else Path(cfg.paths.claims)


def _debug() -> str | None:
    return HydraConfig.get().runtime.choices.get("debug")


def _shrunk(claims: dict[str, Claim], cfg: DictConfig) -> dict[str, Claim]:
    """With the sizes of `debug=…`, if it is chosen."""
    debug = _debug()
    return claims if debug is None else {name: _tiny(claim, debug, cfg.evaluation) for name, claim in claims.items()}


def _tiny(claim: Claim, debug: str, sizes: Any) -> Claim:
    few = {"num_problems": sizes.num_problems, "tuning_problems": sizes.tuning_problems}
    measurements = {
        name: dataclasses.replace(m, horizon=min(m.horizon, sizes.horizon), **few)
        for name, m in claim.measurements.items()
    }
    trainings = {
        name: dataclasses.replace(training, overrides=(*training.overrides, f"debug={debug}"))
        for name, training in claim.trainings.items()
    }
    return dataclasses.replace(claim, measurements=measurements, trainings=trainings)


def _measure(claims: dict[str, Claim], weights: dict[str, Found], cfg: DictConfig, runs: Path, docs: Path) -> None:
    began = time.monotonic()
    set_up_torch(cfg.num_threads)
    task = functools.partial(_task, plugins=tuple(cfg.plugins), data=str(cfg.paths.data), seed=cfg.seed)
    bench = Bench(functools.cache(lambda overrides: task(overrides)), weights, runs / "cache", cfg.seed,
                  tuple(cfg.plugins))  # fmt: skip
    lock = hold(
        runs / ".evaluation.lock", f"{runs}: claims are measured here already; wait until that ends, or stop it"
    )
    try:
        for name, claim in claims.items():
            result = claim_result(claim, bench)
            write_atomically(docs / RESULTS / f"{name}.json", json_text(result))
            for training in claim.trainings:
                export(weights[training], docs / RESULTS / WEIGHTS / f"{training}.safetensors")
        results = load_results(docs / RESULTS)
        write_figures(results, docs / IMAGES)
        page = write_page(results, docs)
    finally:
        lock.release()
    log.info("the claims took %.0f s; they are told in %s", time.monotonic() - began, os.path.relpath(page))


def _task(overrides: Sequence[str], *, plugins: tuple[str, ...], data: str, seed: int) -> Task:
    """The task that overrides of `evaluate.py` choose, ready."""
    cfg = compose("evaluate", [*overrides])
    cfg.paths.data = data
    task = build(cfg.task, "task", plugins=plugins)
    task.prepare()
    check_start(task, seed)
    return task
