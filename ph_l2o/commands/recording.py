"""What a run's folder says of it: who holds it, its configuration, and how it ended."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ph_l2o.errors import ConfigError, Interrupted, NonFiniteError, ProcessError, Pruned
from ph_l2o.files import json_text, remove_half_written, without_folders, write_atomically
from ph_l2o.ranks import has_own_folder, is_rank_zero, is_worker

log = logging.getLogger(__name__)

DIVERGED_SCORE = 1e6  # what a sweep sees of a run whose validation score is not finite
_CONFIG, _STATUS = "config.yaml", "status.json"


@contextlib.contextmanager
def held(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a run's folder, so that no other process continues the run while this one is at it.

    Args:
        folder: Of the run.
        wait: Until another process that holds it has ended, as of a sweep whose command was killed.

    Raises:
        ConfigError: If another process holds it, and `wait` is not set.
    """
    if is_worker() or not is_rank_zero():
        yield
        return
    place = os.path.relpath(folder)
    if wait and is_held(folder):
        log.info("%s: another process is still at it; waiting until that ends", place)
    lock = hold(folder / ".lock", f"{place}: this run is still running; wait until it ends, or stop it", wait=wait)
    try:
        remove_half_written(folder)
        yield
    finally:
        lock.release()


def hold(path: Path, message: str, *, wait: bool = False) -> Any:
    """Take a lock, which ends with this process at the latest.

    Args:
        path: Of the lock's file.
        message: Of the error, where another process has it.
        wait: Until the other process has ended.

    Raises:
        ConfigError: If another process has it, and `wait` is not set.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(message) from None
    except NotImplementedError:
        log.warning("%s: the file system has no locks, so see to it that nothing else goes on with this", path.parent)
    return lock


def is_held(folder: Path) -> bool:
    """Whether a process is at a run."""
    if not (folder / ".lock").is_file():
        return False
    try:
        hold(folder / ".lock", "").release()
    except ConfigError:
        return True
    return False


@contextlib.contextmanager
def recorded(folder: Path) -> Iterator[dict[str, Any]]:
    """Write that the run is running, and then how it ended; end the W&B run, so that jobs of a sweep stay apart.

    What is put into the dictionary is recorded too, if the run ends well.
    """
    began, status, lost, reason, exit_code = time.time(), "error", False, "", 1
    result: dict[str, Any] = {}
    owns = has_own_folder() and not is_worker()
    if owns and is_rank_zero():
        write_status(folder, "running")
    try:
        yield result
        status, exit_code = "ok", 0
    except (KeyboardInterrupt, Interrupted) as error:
        status = "interrupted"
        exit_code = 128 + (error.number if isinstance(error, Interrupted) else signal.SIGINT)
        raise
    except Pruned as ended:
        status, reason, exit_code = "pruned", str(ended), 0
        raise
    except Exception as error:
        status = "diverged" if isinstance(error, NonFiniteError) else "error"
        lost, reason = isinstance(error, ProcessError), str(error)  # perhaps process 0
        raise
    finally:
        if owns and (is_rank_zero() or lost):
            key = "reason" if status == "pruned" else "error"
            more = {key: reason} if reason else result if status == "ok" else {}
            with _told():
                write_status(folder, status, seconds=round(time.time() - began, 1), **more)
        finish_wandb(exit_code)


def reason_of(status: str | None) -> str | None:
    """Why a run has no result, where its own record has no words for it."""
    return {"killed": "its process ended without a word", "interrupted": "it was asked to end"}.get(status or "killed")


def write_status(folder: Path, status: str, **more: Any) -> None:
    """Write `status.json`: `running`, `ok`, `pruned`, `diverged`, `error`, `interrupted` or `killed`."""
    write_atomically(folder / _STATUS, json_text({"status": status, **more}))


def read_status(folder: Path) -> Mapping[str, Any]:
    """What `status.json` says; empty if there is none."""
    path = folder / _STATUS
    return json.loads(path.read_text()) if path.is_file() else {}


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What ended the run is the error to tell, not that this could not be written either."""
    try:
        yield
    except OSError as error:
        log.warning("%s: %s", error.filename, error.strerror)


def save_config(folder: Path, config: Mapping[Any, Any]) -> None:
    """Write `config.yaml`; one that is there and differs is kept as `config.1.yaml`, `config.2.yaml`, …"""
    path, text = folder / _CONFIG, OmegaConf.to_yaml(OmegaConf.create(dict(config)))
    if path.is_file() and (before := path.read_text()) != text:
        free = (folder / f"config.{k}.yaml" for k in itertools.count(1))
        write_atomically(next(p for p in free if not p.exists()), before)
    write_atomically(path, text)


def plain_config(config: Mapping[Any, Any]) -> dict[str, Any]:
    """What checkpoints and loggers keep: plain values, nothing of this machine's folders."""
    places = ("paths", "hydra", "logger")
    kept = {k: v for k, v in config.items() if k not in places}
    has_place = re.compile(r"\$\{|[=\s\[{,:'\"]/").search
    told = [o for o in config["overrides"] if not (o.lstrip("+~").startswith(places) or has_place(o))]
    return without_folders({**kept, "overrides": told})


def saved_config(folder: Path) -> dict[str, Any] | None:
    """What `config.yaml` of a run says; None if there is none.

    Raises:
        ConfigError: If it can't be read.
    """
    from yaml import YAMLError

    path = folder / _CONFIG
    if not path.is_file():
        return None
    try:
        loaded = OmegaConf.load(path)
    except (YAMLError, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{path}: can't be read ({reason}); put a good copy in its place") from error
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{path}: holds no configuration; put a good copy in its place")
    found: Any = OmegaConf.to_container(loaded)
    if "${" in json.dumps({k: v for k, v in found.items() if k != "overrides"}, default=str):
        raise ConfigError(f"{path}: has interpolations, which are not resolved from a file; write their values there")
    return found


def finish_wandb(exit_code: int) -> None:
    """End the W&B run, if there is one; nothing is imported for it."""
    module = sys.modules.get("ph_l2o.meta.wandb_run")
    if module is not None:
        module.finish_wandb(exit_code)


class RunLog(logging.FileHandler):
    """`run.log`; that it cannot be written is said once, in one line."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Say so, and write nothing more."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        print(f"{self.baseFilename}: {error.strerror}; it ends here", file=sys.stderr)
        self.setLevel(logging.CRITICAL + 1)


def close_log_files() -> None:
    """Write no `run.log` from now on."""
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, logging.FileHandler)]:
        with contextlib.suppress(OSError):  # of a full disk
            handler.close()
        root.removeHandler(handler)
