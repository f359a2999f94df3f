"""Sweeps by launchers that run jobs in processes of their own, of which one fails, one is killed, and one diverges."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from trouble import TYPED

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(ROOT)]),
    "OMP_NUM_THREADS": "1",
    "WANDB_MODE": "disabled",
    "RAY_raylet_start_wait_time_s": "600",
}
LAUNCHERS = [
    pytest.param("joblib", "hydra_joblib_launcher", ["hydra.launcher.n_jobs=2"]),
    pytest.param("submitit_local", "hydra_submitit_launcher", [], marks=pytest.mark.slow),
    pytest.param("ray", "hydra_ray_launcher", ["+hydra.launcher.ray.init.num_cpus=2"], marks=pytest.mark.slow),
]


def type_it(folder: Path, *typed: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "train.py"), "--multirun", *typed, *TYPED]
    return subprocess.run(
        command, cwd=folder, env=ENVIRONMENT | more, capture_output=True, text=True, timeout=900, check=False
    )


def summary(folder: Path) -> list[dict[str, str]]:
    (path,) = folder.glob("runs/multirun/*/*/summary.csv")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("launcher", "package", "more"), LAUNCHERS)
def test_no_other_job_is_lost(tmp_path, launcher, package, more):
    """And the same command goes on: what was killed is resumed, what failed is tried again."""
    pytest.importorskip(f"hydra_plugins.{package}")
    typed = (f"hydra/launcher={launcher}", *more, "debug=default", "optimizer=sgd", "compare=false", "seed=1,2,3,4")
    outcome = type_it(tmp_path, *typed)
    assert outcome.returncode == 1, outcome.stdout + outcome.stderr
    rows = summary(tmp_path)
    assert [row["status"] for row in rows] == ["error", "killed", "diverged", "ok"]
    assert rows[0]["error"].startswith("metrics.csv: No space left on device; ")
    assert rows[1]["error"] == "its process was ended by SIGKILL, as by the system when memory runs out"
    assert float(rows[3]["val/score"]) > 0
    last = outcome.stderr.strip().splitlines()[-1]
    assert last == "error: 2 of 4 jobs failed: 0_quadratic_sgd_seed1, 1_quadratic_sgd_seed2; summary.csv says why"
    table = [line.split()[:3] for line in outcome.stdout.splitlines()]
    assert ["1", "2", "killed"] in table and ["3", "4", "ok"] in table
    if launcher == "joblib":
        return  # quick; the next test has it go on
    again = type_it(tmp_path, *typed, NOT_KILLED="1")
    assert again.returncode == 1
    assert [row["status"] for row in summary(tmp_path)] == ["error", "ok", "diverged", "ok"]
    assert [row["val/score"] for row in summary(tmp_path)][3] == rows[3]["val/score"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_launcher_that_loses_its_processes_is_started_again(tmp_path):
    """Joblib gives up on all jobs when one of its own processes is killed; what was under way is resumed."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    typed = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "debug=default", "optimizer=sgd", "compare=false")
    outcome = type_it(tmp_path, *typed, "seed=2,4,5", KILL_LAUNCHER="1")
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert (tmp_path / "killed").exists() and "the launcher lost its processes" in outcome.stdout
    assert [row["status"] for row in summary(tmp_path)] == ["ok"] * 3
