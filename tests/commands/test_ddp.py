"""Several processes, through the command: `strategy=ddp_cpu`."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SMALL = (
    "logger=csv",
    "compare=false",
    "meta.outer_steps=4",
    "meta.val_every=2",
    "meta.num_problems=4",
    "meta.val_problems=4",
    "meta.val_horizon=5",
    "meta.horizons=[6]",
    "meta.gradient_clip=null",
    "meta.truncation=5",
    "task.noise=0.1",
    "task.dim=3",
    "trainer.precision=64-true",
)


def train(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    call = [sys.executable, str(ROOT / "train.py"), f"paths.runs={folder}", *SMALL, *arguments]
    return subprocess.run(call, cwd=folder.parent, env=environment, capture_output=True, text=True, check=False)


def last(folder: Path) -> tuple[dict, Path]:
    (path,) = folder.glob("*/*/checkpoints/last.ckpt")
    return torch.load(path, weights_only=True), path


def norms(folder: Path) -> list[float]:
    (path,) = folder.glob("*/*/metrics.csv")
    with path.open(newline="") as file:
        return [float(row["train/gradient_norm"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    """The same training by one process and by two."""
    folder = tmp_path_factory.mktemp("ddp")
    for name, strategy in (("one", "cpu"), ("two", "ddp_cpu")):
        done = train(folder / name, f"strategy={strategy}")
        assert done.returncode == 0, done.stderr
    return folder / "one", folder / "two"


def test_two_processes_have_the_meta_gradient_of_one(runs):
    """Not merely close after Adam's normalisation: the norm of every averaged gradient, and the weights."""
    one, two = runs
    assert norms(one) == pytest.approx(norms(two), rel=1e-6)
    a, b = last(one)[0], last(two)[0]
    for name, value in a["state_dict"].items():
        torch.testing.assert_close(value, b["state_dict"][name], rtol=1e-6, atol=1e-9)
    for name in ("exp_avg",):  # Adam's average of the meta-gradient itself
        for k, state in a["optimizer_states"][0]["state"].items():
            torch.testing.assert_close(state[name], b["optimizer_states"][0]["state"][k][name], rtol=1e-6, atol=1e-9)


def test_the_checkpoint_holds_the_problems_of_all_processes(runs):
    one, two = (last(folder)[0]["ph_l2o"]["episodes"][0] for folder in runs)
    if one is None:
        assert two is None
    else:
        assert one["params"].shape == two["params"].shape
        torch.testing.assert_close(one["params"], two["params"], rtol=1e-6, atol=1e-9)


def test_a_run_of_two_processes_resumes_with_one(runs):
    """The files don't depend on the number of processes."""
    one, two = runs
    for folder in (one, two):
        done = train(folder, "strategy=cpu", "ckpt_path=last", "meta.outer_steps=5")
        assert done.returncode == 0, done.stderr
    a, b = last(one)[0], last(two)[0]
    assert a["global_step"] == b["global_step"] == 5
    for name, value in a["state_dict"].items():
        torch.testing.assert_close(value, b["state_dict"][name], rtol=1e-6, atol=1e-9)


PERSISTENT = ("estimator=pes", "estimator.num_pairs=2", "estimator.sigma=0.1")


def test_particles_of_several_processes(tmp_path):
    """PES: the same perturbations and carry whatever the number of processes, also after a resume by another number."""
    folders = [tmp_path / name for name in ("one", "two")]
    for folder, strategy in zip(folders, ("cpu", "ddp_cpu"), strict=True):
        done = train(folder, *PERSISTENT, f"strategy={strategy}", "meta.outer_steps=3")
        assert done.returncode == 0, done.stderr
    one, two = (last(folder)[0]["ph_l2o"]["episodes"][0] for folder in folders)
    assert one["age"] == two["age"] == 5 and len(two["params"]) == 4  # problems of both
    for a, b in zip([one["params"], *one["state"]], [two["params"], *two["state"]], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    for folder, strategy in zip(folders, ("ddp_cpu", "cpu"), strict=True):
        done = train(folder, *PERSISTENT, f"strategy={strategy}", "ckpt_path=last", "meta.outer_steps=4")
        assert done.returncode == 0, done.stderr
    assert norms(folders[0]) == pytest.approx(norms(folders[1]), rel=1e-6)
