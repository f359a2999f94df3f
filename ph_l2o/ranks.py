"""Which process of a run this is, from the environment alone, known before the processes have met."""

from __future__ import annotations

import os
from collections.abc import Mapping

# In the environment of processes that the command started: the run's folder, and the checkpoint to resume from.
RUN_FOLDER, CHECKPOINT = "PH_L2O_RUN_FOLDER", "PH_L2O_CHECKPOINT"


def is_worker(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the command that the user typed started this process, to share the problems out."""
    return RUN_FOLDER in environment


def is_rank_zero(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this is the process that writes files.

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
    """Whether a run's folder belongs to this process, or to the command that started it."""
    return is_worker(environment) or is_rank_zero(environment)


def _by_slurm(environment: Mapping[str, str]) -> bool:
    # As Lightning has it: a shell in an allocation is not a task of srun.
    several = environment.get("SLURM_NTASKS", "1") != "1" and "SLURM_PROCID" in environment
    return several and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive")
