"""Which process of a run this is, and what it does when another one is lost."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from ph_l2o.commands.folders import LAST

STARTED_BY = "PH_L2O_STARTED_BY"  # as in ph_l2o.meta.processes, which is slow to import
_PATIENCE = 1.0  # seconds; the sockets of a process that is killed close before its children see that it is gone


def is_rank_zero(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this is the process that writes files, known before the processes have met.

    `RANK` of torchrun decides, or `SLURM_PROCID` where `srun` started several tasks; else it is the first process of
    the first machine, by `LOCAL_RANK` and `NODE_RANK`.
    """
    if "RANK" in environment:
        return environment["RANK"] == "0"
    if _by_slurm(environment):
        return environment["SLURM_PROCID"] == "0"
    return environment.get("LOCAL_RANK", "0") == "0" and environment.get("NODE_RANK", "0") == "0"


def started_processes(environment: Mapping[str, str] = os.environ) -> tuple[str, int] | None:
    """Who started this process and how many: `torchrun` or `srun`; None where the command does it itself."""
    if "TORCHELASTIC_RUN_ID" in environment:
        return "torchrun", int(environment["WORLD_SIZE"])
    return ("srun", int(environment["SLURM_NTASKS"])) if _by_slurm(environment) else None


def has_own_folder(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a run's folder belongs to this process, or to one on this machine that started it."""
    return STARTED_BY in environment or is_rank_zero(environment)


def _by_slurm(environment: Mapping[str, str]) -> bool:
    # As Lightning has it: a shell in an allocation is not a task of srun.
    several = environment.get("SLURM_NTASKS", "1") != "1" and "SLURM_PROCID" in environment
    return several and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def how_to_resume(folder: Path) -> str:
    """What to do after a run ended because of one of its processes."""
    if (folder / LAST).is_file():
        return f"resume with ckpt_path=last or ckpt_path={os.path.relpath(folder / LAST)}"
    if (folder / "config.yaml").is_file():
        return "no checkpoint was written yet, so start the run anew"
    return "resume with ckpt_path=last"  # the folder of process 0 is elsewhere


def is_told_by_another(error: BaseException) -> bool:
    """Whether an error that all processes meet is told by the process that started this one, if that still lives."""
    if STARTED_BY not in os.environ or type(error).__name__ not in ("NonFiniteError", "ProcessError"):
        return False
    until = time.monotonic() + _PATIENCE
    while str(os.getppid()) == os.environ[STARTED_BY]:
        if time.monotonic() > until:
            return True
        time.sleep(0.05)
    return False


def tell(text: str) -> None:
    """One line on stderr, from a thread whose process ends."""
    sys.stderr.write(f"error: {text}\n")
    sys.stderr.flush()
