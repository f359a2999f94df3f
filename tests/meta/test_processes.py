"""Two processes, as on two machines with one each, give the run of one, for every estimator."""

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import sharing
import torch

ROOT = Path(__file__).parents[2]
EVERY = (*sharing.SCALARS, *sharing.GRADIENTS)
OF_TIME = ("train/task_steps_per_s",)


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """A folder with the runs of two processes."""
    folder, started = tmp_path_factory.mktemp("two"), []
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "LOCAL_RANK": "0", "OMP_NUM_THREADS": "1"}
    for rank in "01":
        environment = os.environ | where | {"NODE_RANK": rank, "PYTHONPATH": str(ROOT)}
        call = [sys.executable, str(Path(__file__).with_name("sharing.py")), str(folder)]
        started.append(subprocess.Popen(call, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    outputs = [process.communicate(timeout=300)[0].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Makes the run of one process, which is remembered."""
    folder, made = tmp_path_factory.mktemp("one"), {}

    def run(name: str) -> tuple[dict, Path]:
        if name not in made:
            made[name] = sharing.train(name, folder)
        return made[name], folder / name

    return run


def rows(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v and k not in OF_TIME} for row in csv.DictReader(file)]


@pytest.mark.parametrize("name", EVERY)
def test_weights_metrics_and_carry_of_one_process(name, one, two):
    alone, folder = one(name)
    for rank in (0, 1):
        together = torch.load(two / f"{rank}.pt")[name]["weights"]
        torch.testing.assert_close(together, alone["weights"], rtol=1e-9, atol=1e-11)
    assert (alone["weights"][0] - alone["weights"][-1]).abs().max() > 1e-3  # it does learn
    ours, theirs = rows(two / name), rows(folder)
    assert len(ours) == len(theirs) == sharing.OUTER_STEPS and "val/score" in ours[4]
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=1e-8)
    a, b = (torch.load(f / "checkpoints" / "last.ckpt")["ph_l2o"] for f in (two / name, folder))
    assert a["next_episode"] == b["next_episode"] and (a["episodes"][0] is None) == (b["episodes"][0] is None)
    if a["episodes"][0] is not None:
        for key in ("params", "state"):
            torch.testing.assert_close(a["episodes"][0][key], b["episodes"][0][key], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", sharing.SCALARS)
def test_exchanging_scalars_leaves_no_trace(name, one, two):
    """The weights of all processes are the same to the last bit; those of one process differ by rounding."""
    first, second = (torch.load(two / f"{rank}.pt")[name]["weights"] for rank in (0, 1))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, one(name)[0]["weights"], rtol=1e-11, atol=1e-13)


def test_the_sum_of_draws_after_a_resume(two, tmp_path):
    """Each process makes that of the others' problems anew; one process has it in the checkpoint."""
    sharing.train(sharing.RESUMED, tmp_path)
    last = torch.load(tmp_path / sharing.RESUMED / "checkpoints" / "last.ckpt")
    assert last["ph_l2o"]["episodes"][0]["age"] == sharing.K  # so there is a draw before the next one
    alone = sharing.resume(tmp_path)["weights"]
    for rank in (0, 1):
        found = torch.load(two / f"{rank}.pt")[sharing.RESUMED]["weights"]
        torch.testing.assert_close(found, alone, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", sharing.BREAKS)
def test_a_step_that_is_not_finite_is_skipped_by_all(name, one, two):
    """The problem that breaks belongs to the second process."""
    alone = one(name)[0]
    assert alone["skipped"] == 1
    for rank in (0, 1):
        found = torch.load(two / f"{rank}.pt")[name]
        assert found["skipped"] == 1
        torch.testing.assert_close(found["weights"], alone["weights"], rtol=1e-9, atol=1e-11)


def test_weights_that_drift_apart_end_the_run(two):
    """Also shows that Lightning averages no gradients there, which would hide it."""
    for rank in (0, 1):
        assert "estimator.exchange=scalars: the processes' weights" in torch.load(two / f"{rank}.pt")[sharing.DRIFTS]
