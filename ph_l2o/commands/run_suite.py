"""`evaluate.py suite=…`: optimizers on every task of a suite."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ph_l2o.checks import did_you_mean
from ph_l2o.commands.instantiate import build
from ph_l2o.commands.validate import check_start
from ph_l2o.errors import ConfigError
from ph_l2o.evaluation import SuiteComparison, SuiteTask, compare_suite
from ph_l2o.evaluation.drawn_curves import write_curves

log = logging.getLogger(__name__)

_KEYS = ("task", "horizon")


def build_suite(cfg: DictConfig, *, check: bool = True) -> dict[str, Any]:
    """The tasks of the suite that are to be run, ready, as `SuiteTask`s by name.

    Args:
        cfg: The configuration.
        check: Whether to look at their losses at the start.

    Raises:
        ConfigError: Naming key, value and what is allowed.
    """
    suite: dict[str, Any] = {}
    for name, (node, horizon) in _entries(cfg).items():
        try:
            task = build(node, f"suite.{name}.task", plugins=cfg.plugins)
            task.name = name
            if task.can_be_negative:
                raise ConfigError(f"task.can_be_negative=true: ratios of losses have no meaning on {name}")
            task.prepare()
            if check:
                check_start(task, cfg.seed)
        except ValueError as error:
            text = str(error)
            raise ConfigError(f"suite.{name}.{text}" if text.startswith("task.") else text) from error
        suite[name] = SuiteTask(task, horizon)
    return suite


def _entries(cfg: DictConfig) -> dict[str, tuple[dict[str, Any], int]]:
    """Task and horizon of each entry; all are checked before the first one's data are read."""
    plain: Any = OmegaConf.to_container(cfg.suite, resolve=True)
    names = list(plain)
    chosen = names if cfg.suite_tasks is None else list(cfg.suite_tasks)
    if not chosen:
        raise ConfigError("suite_tasks=[]: name at least one task of the suite, or null for all")
    for name in chosen:
        if name not in names:
            raise ConfigError(f"suite_tasks=[…, {name}]: must be of {', '.join(names)}{did_you_mean(str(name), names)}")
    entries = {}
    for name in dict.fromkeys(chosen):
        entry = plain[name]
        if not isinstance(entry, Mapping) or not isinstance(entry.get("task"), Mapping):
            raise ConfigError(f"suite.{name}={entry}: must have the keys {' and '.join(_KEYS)}")
        for key in entry:
            if key not in _KEYS:
                raise ConfigError(f"suite.{name}.{key}=…: no such key{did_you_mean(str(key), _KEYS)}")
        if "_target_" not in entry["task"]:
            raise ConfigError(f"suite.{name}.task={dict(entry['task'])}: must have a _target_, the task's class")
        horizon = entry.get("horizon") if cfg.horizon is None else cfg.horizon
        if isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1:
            key = f"suite.{name}.horizon" if cfg.horizon is None else "horizon"
            raise ConfigError(f"{key}={horizon}: must be a whole number >= 1 (inner steps)")
        entries[name] = entry["task"], horizon
    return entries


def compare_suite_and_save(
    optimizers: Mapping[str, Any], suite: Mapping[str, Any], folder: Path, **settings: Any
) -> tuple[SuiteComparison, tuple[Path, ...]]:
    """Compare, print the tables, and write `suite.csv`, `suite.json`, `suite_curves.csv` and the figures.

    Returns:
        The comparison, and the figures.
    """
    began = time.monotonic()

    def save(done: SuiteComparison) -> None:
        done.to_csv(folder / "suite.csv")
        done.to_json(folder / "suite.json")
        curves = {(task, name): run.curve for task, o in done.tasks.items() for name, run in o.runs.items()}
        write_curves(folder / "suite_curves.csv", curves, ("task", "optimizer"))

    comparison = compare_suite(dict(optimizers), suite, after_task=save, **settings)
    figures = comparison.plot(folder)
    log.info("%s", comparison)
    log.info(
        "the suite took %.0f s; suite.csv, suite.json, suite_curves.csv, %s are in %s",
        *(time.monotonic() - began, ", ".join(path.name for path in figures), os.path.relpath(folder)),
    )
    return comparison, figures
