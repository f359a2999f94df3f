"""The trainings that claims need: each an ordinary run of `train.py` in a folder and a process of its own."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from ph_l2o.claims.spec import Training
from ph_l2o.claims.weights import Found, difference_of_file, differing_key, of_file, of_run, settings_of
from ph_l2o.commands.folders import LAST
from ph_l2o.commands.recording import hold, is_held, read_status, saved_config
from ph_l2o.commands.sweeps.sweep_jobs import FINISHED, clear
from ph_l2o.errors import ConfigError, OtherRunError, ProcessError
from ph_l2o.files import json_text, write_atomically

log = logging.getLogger(__name__)

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "from ph_l2o.commands.sweeps.job_process import end_with_parent; end_with_parent(); "
    "from ph_l2o.cli import train; train()"
)
# Typed beside a training's own.
_OURS = ("run_name", "compare", "logger", "paths", "num_threads", "ckpt_path", "plugins", "weights")
_STARTED = "started_from.json"  # in a training's folder: the settings of the one whose weights it began with
_PAUSE = 0.2  # seconds between looks at processes


@dataclass(frozen=True)
class Planned:
    """A training with its folder, and the settings that decide its weights."""

    training: Training
    folder: Path
    settings: dict[str, Any]
    file: Path

    @property
    def is_finished(self) -> bool:
        """Whether its run is there and at its end."""
        return read_status(self.folder).get("status") in FINISHED


def planned(trainings: Mapping[str, Training], runs: Path, *weights: Path) -> dict[str, Planned]:
    """Trainings by name, after a look at what is there of them.

    Args:
        trainings: By name.
        runs: The folder of their folders.
        weights: Folders with weights of earlier ones, one or more, of which the first that has them counts.

    Raises:
        OtherRunError: If a folder is one of a run with other settings.
        HydraException: If overrides do not compose.
    """
    found = {}
    for name, training in trainings.items():
        cfg = compose("train", list(training.overrides))
        config = {key: _plain(cfg, key) for key in ("task", "optimizer", "estimator", "meta", "seed", "weights")}
        config["trainer"] = {"precision": cfg.trainer.precision}
        if training.after is not None:
            config["weights"] = found[training.after].settings
        settings = settings_of(config, training.overrides)
        folder = runs / name
        if (saved := saved_config(folder)) is not None:
            if training.after is not None:
                saved = {**saved, "weights": _started_from(folder)}
            own = tuple(o for o in saved.get("overrides") or [] if o.partition("=")[0].split(".")[0] not in _OURS)
            if key := differing_key(settings, settings_of(saved, own)):
                raise OtherRunError(
                    f"{folder}: was run with other settings of {key}; move it away, or choose another place with "
                    "paths.claims=FOLDER"
                )
        files = [place / f"{name}.safetensors" for place in weights]
        file = next((path for path in files if path.is_file()), files[0])
        found[name] = Planned(training, folder, settings, file)
    return found


def _started_from(folder: Path) -> Any:
    path = folder / _STARTED
    return json.loads(path.read_text()) if path.is_file() else None


def _plain(cfg: DictConfig, key: str) -> Any:
    value = cfg[key]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def find_weights(plans: Mapping[str, Planned], plugins: Sequence[str], command: str) -> dict[str, Found]:
    """The weights of all trainings: those of their runs, or else those beside the results.

    Args:
        plans: By name.
        plugins: Modules that may be imported for an optimizer's class.
        command: That makes what is missing.

    Raises:
        ConfigError: If some are missing, or were made with other settings.
    """
    found: dict[str, Found] = {}
    missing = []
    for name, plan in plans.items():
        weights = (
            of_run(plan.folder, plan.settings, plugins=tuple(plugins))
            if plan.is_finished
            else of_file(plan.file, plan.settings, plugins=tuple(plugins))
        )
        if weights is None:
            missing.append(name)
        else:
            found[name] = weights
    if missing:
        raise ConfigError(f"claims: there are no weights of {', '.join(missing)}; `{command}` trains what is missing")
    return found


def train_missing(plans: Mapping[str, Planned], cfg: DictConfig) -> None:
    """Train what is neither trained nor beside the results; a run that was stopped goes on.

    Raises:
        ProcessError: If trainings failed; the others are run all the same.
    """
    waiting = [plan for plan in plans.values() if not _is_there(plan)]
    log.info("%d of %d trainings are there", len(plans) - len(waiting), len(plans))
    running: list[_Run] = []
    failed: dict[str, str] = {}
    try:
        while waiting or running:
            while len(running) < cfg.num_processes and (plan := _next(waiting, running, failed)):
                waiting.remove(plan)
                if (after := plan.training.after) in failed:
                    failed[plan.training.name] = f"it starts with the weights of {after}, which failed"
                elif run := _started(plan, plans, cfg):
                    running.append(run)
            for run in [r for r in running if r.process.poll() is not None]:
                running.remove(run)
                if reason := run.ended():
                    failed[run.plan.training.name] = reason
            time.sleep(_PAUSE if running else 0)
    except BaseException:
        for run in running:
            run.process.terminate()  # it writes a checkpoint
        for run in running:
            run.process.wait()
            run.lock.release()
        raise
    if failed:
        name, reason = next(iter(failed.items()))
        more = f" (so did {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise ProcessError(f"claims: the training {name} failed{more}: {reason}; the same command goes on")


def _next(waiting: Sequence[Planned], running: Sequence[_Run], failed: Mapping[str, str]) -> Planned | None:
    """The first training that need not wait for another's weights."""
    under_way = {p.training.name for p in [*waiting, *(run.plan for run in running)]} - failed.keys()
    return next((plan for plan in waiting if plan.training.after not in under_way), None)


def _is_there(plan: Planned) -> bool:
    if plan.is_finished:
        return True
    if (plan.folder / LAST).is_file() or not plan.file.is_file():
        return False
    if (key := difference_of_file(plan.file, plan.settings)) is None:
        return True
    log.warning("%s: was trained with other settings of %s, so it is trained anew", plan.file.name, key)
    return False


@dataclass
class _Run:
    plan: Planned
    process: subprocess.Popen[bytes]
    stderr: IO[bytes]
    lock: Any
    began: float

    def ended(self) -> str | None:
        """Why it failed; None if it did not."""
        self.lock.release()
        name, code = self.plan.training.name, self.process.returncode
        self.stderr.seek(0)
        told = self.stderr.read().decode(errors="replace").strip()
        self.stderr.close()
        status = read_status(self.plan.folder).get("status")
        if status in FINISHED:
            log.info("%s: %s after %.0f s", name, status, time.monotonic() - self.began)
            return None
        lines = [line for line in told.splitlines() if line.strip()]
        return lines[-1].removeprefix("error: ") if lines else f"its process ended with status {code}"


def _started(plan: Planned, plans: Mapping[str, Planned], cfg: DictConfig) -> _Run | None:
    """Start or continue a training; None if another command has finished it meanwhile."""
    name = plan.training.name
    path = plan.folder.parent / f".{name}.lock"
    try:
        lock = hold(path, "")
    except ConfigError:
        log.info("%s: another command is at this training; waiting until it ends", name)
        lock = hold(path, "", wait=True)
    if _is_there(plan):
        lock.release()
        return None
    plan.folder.mkdir(parents=True, exist_ok=True)
    typed = [f"run_name={name}", "compare=false", "logger=csv", f"num_threads={cfg.num_threads or 'null'}"]
    typed += [f"hydra.run.dir={_quoted(plan.folder)}"]
    typed += [f"paths.{key}={_quoted(Path(cfg.paths[key]))}" for key in ("data", "runs")]
    if cfg.plugins:
        typed.append(f"plugins=[{','.join(cfg.plugins)}]")
    if (plan.folder / LAST).is_file():
        typed.append(f"ckpt_path={_quoted(plan.folder / LAST)}")
        log.info("%s: going on from its last checkpoint", name)
    else:
        if not is_held(plan.folder):
            clear(plan.folder)
        if (after := plan.training.after) is not None:
            typed.append(f"weights={_quoted(find_weights({after: plans[after]}, cfg.plugins, '')[after].path)}")
            write_atomically(plan.folder / _STARTED, json_text(plans[after].settings))
        log.info("%s: training (%s)", name, " ".join(plan.training.overrides))
    command = [sys.executable, "-c", _START, json.dumps(sys.path), *_config_dirs(), *plan.training.overrides, *typed]
    stderr = tempfile.TemporaryFile()  # noqa: SIM115  # until the process has ended
    alone = cfg.num_processes == 1
    process = subprocess.Popen(
        command, stdout=None if alone else subprocess.DEVNULL, stderr=stderr, start_new_session=True,
        stdin=subprocess.DEVNULL, env=os.environ | {"HYDRA_FULL_ERROR": "1"},
    )  # fmt: skip
    return _Run(plan, process, stderr, lock, time.monotonic())


def _config_dirs() -> list[str]:
    """The user's own folders of configuration, as they were typed."""
    sources = HydraConfig.get().runtime.config_sources
    found = [s.path for s in sources if s.provider == "command-line" and s.path]
    return [word for path in found for word in ("--config-dir", str(path))]


def _quoted(path: Path) -> str:
    text = str(path.absolute()).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"
