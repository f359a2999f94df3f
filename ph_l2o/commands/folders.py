"""Where runs live: runs/<date>/<time>_<task>_<optimizer>/."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

LAST = Path("checkpoints") / "last.ckpt"


def register_resolvers() -> None:
    """Make `${run_dir:…}` known to the configuration. Needed before it is composed."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("run_dir", _run_dir, replace=True, use_cache=True)


def _run_dir(ckpt_path: str | None, runs: str, run_name: str) -> str:
    """A fresh folder, or that of the run which is resumed; the folder above for processes that write nothing."""
    if ckpt_path not in (None, "null", "None"):
        path = find_checkpoint(str(ckpt_path), runs, run_name)
        if path.name == LAST.name and path.parent.name == LAST.parent.name:
            return str(path.parent.parent)
    from ph_l2o.commands.processes import has_own_folder

    if not has_own_folder():
        return runs  # nothing is written by it
    now = datetime.datetime.now()
    return os.path.join(runs, f"{now:%Y-%m-%d}", f"{now:%H-%M-%S-%f}_{run_name}")


def find_checkpoint(ckpt_path: str, runs: str, run_name: str) -> Path:
    """The file that `ckpt_path` means; `last` is the newest run of that name.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if ckpt_path != "last":
        path = Path(ckpt_path)
        if not path.is_file():
            raise FileNotFoundError(f"ckpt_path={ckpt_path}: no such file; give a checkpoint, or `last`")
        return path
    found = sorted(Path(runs).glob(f"*/*_{run_name}/{LAST}"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise FileNotFoundError(
            f"ckpt_path=last: no run of {run_name} with a checkpoint in {runs}; start one without ckpt_path"
        )
    return found[-1]


def git_revision() -> str | None:
    """The commit that the working folder is at, with `-dirty` where it is changed; None outside of git."""
    try:
        call = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(call, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Write a file that is whole or not there."""
    from ph_l2o.evaluation.files import write_atomically

    write_atomically(path, json.dumps(value, indent=1) + "\n")


def remove_if_untouched(folder: Path) -> None:
    """Remove a run's folder in which no work was done, and parents that it leaves empty."""
    if (folder / "checkpoints").exists() or (folder / "config.yaml").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    for parent in (folder.parent, folder.parent.parent):
        try:
            parent.rmdir()
        except OSError:
            return
