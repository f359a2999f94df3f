"""The folder of a sweep: a new one, or that of the same command which was stopped; and who is at it."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from ph_l2o.commands.overrides import overrides_of
from ph_l2o.commands.recording import hold
from ph_l2o.errors import ConfigError
from ph_l2o.files import git_revision, json_text, write_atomically

log = logging.getLogger(__name__)

_RECORD = "sweep.json"
_OWN = (_RECORD, ".lock", "multirun.yaml")
_EXTRAS = {"joblib": "joblib", "submitit": "slurm", "ray": "ray", "optuna": "sweep"}
_held: list[Any] = []  # the lock of this process's sweep, for as long as it runs


def check_packages(config: DictConfig) -> None:
    """Raise ConfigError if the launcher or the sweeper that was chosen is not installed."""
    for what in ("launcher", "sweeper"):
        target = str(config.hydra[what]["_target_"])
        module = target.rpartition(".")[0]
        for package, extra in _EXTRAS.items():
            if target.startswith(f"hydra_plugins.hydra_{package}_") and not _is_installed(module):
                option = config.hydra.runtime.choices.get(f"hydra/{what}") or package
                raise ConfigError(
                    f"hydra/{what}={option}: needs a package that is not installed; pip install 'ph-l2o[{extra}]'"
                )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def take(config: DictConfig, command: str) -> Path:
    """Choose the folder of a sweep that starts, hold it, and have all of its jobs use it.

    `hydra.sweep.dir=…` names one. Else it is the newest one of the same command and configuration that is not finished,
    or a new one.

    Args:
        config: Of the sweep, whose overrides go to every job.
        command: `train` or `evaluate`.

    Raises:
        ConfigError: If a process is at it, or it holds a sweep with other settings.
    """
    swept = swept_keys(config)
    record = {"command": command, "overrides": overrides_of(config.hydra), "config": _base(config, swept)}
    folder = Path(config.hydra.sweep.dir)
    is_typed = any(o.startswith("hydra.sweep.dir=") for o in overrides_of(config.hydra, "hydra"))
    before = _read(folder) if is_typed else None
    if not is_typed and (found := _unfinished(Path(config.paths.runs), record)) is not None:
        folder, before = found, _read(found)
    _check_same(folder, before, record)
    _held[:] = [hold(folder / ".lock", _running(folder))]
    if before is not None:
        _tell(folder, before)
    write_atomically(folder / _RECORD, json_text(record | {"git_revision": git_revision(), "finished": False}))
    have_jobs_use(config, folder)
    return folder


def have_jobs_use(config: DictConfig, folder: Path) -> None:
    """Have all jobs of a sweep use a folder, and know what is not swept.

    Each job is composed anew, perhaps in another process or on another machine, from the sweep's overrides.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    swept = swept_keys(config)
    parsed = OverridesParser.create().parse_overrides(overrides_of(config.hydra))
    fixed = [key for o in parsed if (key := o.get_key_element()) not in swept]
    quoted = ",".join(f"'{key}'" for key in fixed)
    place = str(folder).replace("'", "\\'")
    more = [f"hydra.sweep.dir='{place}'", f"hydra.job.config.override_dirname.exclude_keys=[{quoted}]"]
    with read_write(config), open_dict(config):
        config.hydra.sweep.dir = str(folder)
        config.hydra.overrides.hydra = [*overrides_of(config.hydra, "hydra"), *more]


def release(folder: Path) -> None:
    """Let others have the folder; one without jobs is removed."""
    for lock in _held:
        lock.release()
    _held.clear()
    if folder.is_dir() and all(p.name in _OWN for p in folder.iterdir()):
        shutil.rmtree(folder, ignore_errors=True)
        for parent in (folder.parent, folder.parent.parent, folder.parent.parent.parent):
            if Path.cwd().is_relative_to(parent.absolute()) or not parent.is_dir() or any(parent.iterdir()):
                return
            parent.rmdir()


def finish(folder: Path) -> None:
    """Write that nothing is left to do, so that the same command starts a new sweep."""
    record = _read(folder)
    if record is not None:
        write_atomically(folder / _RECORD, json_text(record | {"finished": True}))


def swept_keys(config: DictConfig) -> list[str]:
    """Keys of which a sweep has several values, on the command line or for its sweeper."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(overrides_of(config.hydra))
    typed = {o.get_key_element(): o.is_sweep_override() for o in parsed}  # which wins over what a sweeper has
    others = (key for key in map(str, config.hydra.sweeper.get("params") or ()) if key not in typed)
    return [*(key for key, is_swept in typed.items() if is_swept), *others]


def is_sweep(folder: Path) -> bool:
    """Whether a sweep was begun there."""
    return (folder / _RECORD).is_file()


def jobs_in(folder: Path) -> list[Path]:
    """Folders of a sweep's jobs, by their numbers."""
    found = [p for p in folder.iterdir() if p.is_dir() and p.name.partition("_")[0].isdecimal()]
    return sorted(found, key=lambda p: (int(p.name.partition("_")[0]), p.name))


def _base(config: DictConfig, swept: list[str]) -> dict[str, Any]:
    """What all jobs share, for telling sweeps apart."""
    made: Any = OmegaConf.to_container(config, resolve=False)
    hydra = made.pop("hydra")
    for key in swept:
        *above, last = key.lstrip("+~").split("@")[0].replace("/", ".").split(".")
        node = made
        for part in above:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node.pop(last, None)
    made.pop("paths", None)
    return json.loads(json_text(made | {"hydra.sweeper": hydra["sweeper"]}))


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / _RECORD).read_text())
    except (OSError, ValueError):
        return None


def _unfinished(runs: Path, record: dict[str, Any]) -> Path | None:
    """The newest sweep of the same command; None if it is finished, or there is none."""
    for path in sorted((runs / "multirun").glob(f"*/*/{_RECORD}"), key=lambda p: p.parent, reverse=True):
        found = _read(path.parent)
        if found is not None and all(found.get(key) == record[key] for key in record):
            return None if found.get("finished") else path.parent
    return None


def _check_same(folder: Path, before: dict[str, Any] | None, record: dict[str, Any]) -> None:
    if before is None:
        return
    now, then = record["config"], before.get("config", {})
    differs = [key for key in {**then, **now} if now.get(key) != then.get(key)]
    if before.get("command") != record["command"] or differs:
        what = ", ".join(differs[:3]) or "the command"
        raise ConfigError(
            f"hydra.sweep.dir={os.path.relpath(folder)}: holds a sweep with other settings ({what}); "
            "take another folder, or type what was typed then"
        )


def _running(folder: Path) -> str:
    return (
        f"{os.path.relpath(folder)}: this sweep is still running; wait until it ends, stop it, or start another one "
        "with hydra.sweep.dir=FOLDER"
    )


def _tell(folder: Path, before: dict[str, Any]) -> None:
    log.info("going on with the sweep in %s", os.path.relpath(folder))
    then, now = before.get("git_revision"), git_revision()
    if then != now:
        log.warning(
            "it was begun at revision %s, and goes on at %s: what is finished stays; a new folder, "
            "hydra.sweep.dir=FOLDER, runs all jobs anew",
            then, now,
        )  # fmt: skip
