"""Which process writes, and who started it."""

import pytest

from ph_l2o.ranks import has_own_folder, is_rank_zero, is_worker, started_processes

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
    assert not is_worker(environment)
    worker = environment | {"PH_L2O_RUN_FOLDER": "x"}
    assert is_worker(worker) and has_own_folder(worker)
