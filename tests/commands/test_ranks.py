"""Which process writes, and what the one that started others does when they are lost."""

import subprocess
import sys
from pathlib import Path

import pytest

from ph_l2o.commands.folders import LAST
from ph_l2o.commands.lost_process import how_to_resume
from ph_l2o.ranks import has_own_folder, is_rank_zero, started_processes

SLURM = {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "job"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4"}


@pytest.mark.parametrize(("environment", "is_zero", "started"), [
    ({}, True, None),
    ({"LOCAL_RANK": "1"}, False, None),
    ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, True, None),
    ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False, None),
    (TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}, True, ("torchrun", 4)),
    (TORCHRUN | {"RANK": "2", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, False, ("torchrun", 4)),
    (SLURM | {"SLURM_PROCID": "0"}, True, ("srun", 4)),
    (SLURM | {"SLURM_PROCID": "2", "SLURM_LOCALID": "0"}, False, ("srun", 4)),
    (SLURM | {"SLURM_PROCID": "0", "SLURM_JOB_NAME": "bash"}, True, None),
    ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "job"}, True, None),
    (SLURM | TORCHRUN | {"SLURM_PROCID": "0", "RANK": "1", "LOCAL_RANK": "1"}, False, ("torchrun", 4)),
])  # fmt: skip
def test_environments(environment, is_zero, started):
    assert is_rank_zero(environment) == has_own_folder(environment) == is_zero
    assert started_processes(environment) == started
    assert has_own_folder(environment | {"PH_L2O_STARTED_BY": "1"})  # Lightning gives it the folder of process 0


def test_how_to_resume(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    assert how_to_resume(run) == "resume with ckpt_path=last"
    (run / "config.yaml").touch()
    assert how_to_resume(run) == "no checkpoint was written yet, so start the run anew"
    (run / LAST).parent.mkdir()
    (run / LAST).touch()
    assert how_to_resume(run) == f"resume with ckpt_path=last or ckpt_path={Path('runs') / 'a' / LAST}"


STUCK = """
import subprocess, sys, time
from pytorch_lightning.plugins.environments import LightningEnvironment
from ph_l2o.meta import processes

processes._GRACE = 0.1
launcher = processes._Launcher(LightningEnvironment(), 2, 1, lambda what: print(what, flush=True))
other = [sys.executable, "-c", "raise SystemExit(3)"]
launcher._call_children_scripts = lambda: launcher.procs.append(subprocess.Popen(other))
launcher.launch(time.sleep, 100)
"""


def test_a_process_that_waits_for_a_lost_one_in_vain_is_ended():
    """As where the other one is lost before the processes have met."""
    done = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=90)
    assert done.returncode == 1
    assert done.stdout.startswith("process ") and done.stdout.endswith(" of this run ended with status 3\n")
