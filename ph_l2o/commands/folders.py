"""Where runs live: runs/<date>/<time>_<task>_<optimizer>/."""

from __future__ import annotations

import datetime
import os
import re
import shutil
from pathlib import Path

from ph_l2o.ranks import has_own_folder

LAST = Path("checkpoints") / "last.ckpt"
_FRESH = re.compile(r"\d\d-\d\d-\d\d-\d{6}_.+")  # the name that a new run's folder gets, by its time


def conf_dir() -> str:
    """The configuration: `conf/` beside the package in a checkout, inside it in an installed wheel."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return str(installed if installed.is_dir() else package.parent / "conf")


def register_resolvers() -> None:
    """Make `${run_dir:…}` and `${record_dir:…}` known, before the configuration is composed."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("run_dir", _run_dir, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("record_dir", _record_dir, replace=True)


def _run_dir(ckpt_path: str | None, runs: str, run_name: str) -> str:
    """A fresh folder, or that of the run which is resumed; the folder above for processes that write nothing."""
    if ckpt_path not in (None, "null", "None"):
        path = find_checkpoint(str(ckpt_path), runs, run_name)
        if path.name == LAST.name and path.parent.name == LAST.parent.name:
            return str(path.parent.parent)
    if not has_own_folder():
        return runs  # nothing is written by it
    now = datetime.datetime.now()
    return os.path.join(runs, f"{now:%Y-%m-%d}", f"{now:%H-%M-%S-%f}_{run_name}")


def _record_dir(ckpt_path: str | None) -> str | None:
    """Hydra's own record of a start; a resumed run keeps that of its first one. Jobs of a sweep have folders anew."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    is_job = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    return ".hydra" if is_job or ckpt_path in (None, "null", "None") else None


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


def remove_if_untouched(folder: Path) -> None:
    """Remove a run's folder in which no work was done, and parents that it leaves empty.

    Of a folder that the user named (`hydra.run.dir=…`) only what Hydra wrote goes; of a shared one, nothing.
    """
    if (folder / "checkpoints").exists() or (folder / "config.yaml").exists():
        return
    if has_own_folder() and _FRESH.fullmatch(folder.name):
        shutil.rmtree(folder, ignore_errors=True)
    elif has_own_folder():
        shutil.rmtree(folder / ".hydra", ignore_errors=True)
        for name in ("run.log", ".lock"):
            (folder / name).unlink(missing_ok=True)
    for path in (folder, folder.parent, folder.parent.parent):
        if Path.cwd().is_relative_to(path.absolute()):
            return
        try:
            path.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return
