"""Several processes, through the command: `strategy=ddp_cpu`."""

import csv
import json
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
    "meta.outer_steps=3",  # within an episode, so that there is a carry
    "meta.val_every=3",
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
    assert one["age"] == two["age"] == 5
    assert len(one["params"]) == len(two["params"]) == 4
    for a, b in zip([one["params"], *one["state"]], [two["params"], *two["state"]], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_one_run_has_one_folder_and_says_everything_once(runs):
    """That of the command: no process of its own writes another, nor the files of Hydra again."""
    _, two = runs
    (folder,) = two.glob("*/*")
    written = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    hydra = {f".hydra/{name}.yaml" for name in ("config", "hydra", "overrides")}
    assert written == hydra | {
        ".lock", "config.yaml", "status.json", "run.log", "metrics.csv", "report.html",
        "checkpoints/best.ckpt", "checkpoints/last.ckpt",
    }  # fmt: skip
    assert json.loads((folder / "status.json").read_text())["status"] == "ok"
    assert (folder / "run.log").read_text().count("meta-training took") == 1
    assert "ckpt_path" not in (folder / ".hydra" / "overrides.yaml").read_text()


def test_a_run_resumes_with_another_number_of_processes(runs):
    """The files don't depend on it."""
    for folder, strategy in zip(runs, ("ddp_cpu", "cpu"), strict=True):
        done = train(folder, f"strategy={strategy}", "ckpt_path=last", "meta.outer_steps=4")
        assert done.returncode == 0, done.stderr
    a, b = (last(folder)[0] for folder in runs)
    assert a["global_step"] == b["global_step"] == 4
    for name, value in a["state_dict"].items():
        torch.testing.assert_close(value, b["state_dict"][name], rtol=1e-6, atol=1e-9)
