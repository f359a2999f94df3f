"""Weights & Biases, offline: what a run writes, and that jobs of a sweep are runs of their own."""

import time
from pathlib import Path

import pytest
import wandb

from ph_l2o.meta import wandb_run

TINY = ("debug=default", "logger=wandb")


@pytest.fixture(autouse=True)
def offline(command, monkeypatch, tmp_path):
    """No API key, so the mode is for ph_l2o to find."""
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def offline_runs(folder: Path) -> list[Path]:
    return sorted(folder.rglob("run-*.wandb"))


def content(run: Path) -> bytes:
    """W&B's own process writes the file, a moment after the run is finished."""
    end = time.monotonic() + 30
    while run.stat().st_size < 1000 and time.monotonic() < end:
        time.sleep(0.05)
    return run.read_bytes()


def test_without_a_key_it_is_offline_and_says_so_in_one_line(command, run_folder):
    outcome = command("train", *TINY)
    assert outcome.code == 0, outcome.err
    lines = [line for line in outcome.out.splitlines() if "W&B" in line]
    assert len(lines) == 1 and "offline" in lines[0] and "wandb sync" in lines[0]
    (run,) = offline_runs(run_folder())
    written = content(run)
    # The history, the configuration, the table and the picture are in the run's file.
    for name in (
        b"outer_step",
        b"train/outer_loss",
        b"val/quadratic/final_loss",
        b"test/comparison",
        b"test/curves",
        b"git_revision",
    ):
        assert name in written, name


@pytest.fixture
def own_service():
    """W&B reads its environment once, and a try that failed stays with its process."""
    wandb.teardown()
    yield
    wandb.teardown()


def test_with_a_key_but_without_a_route_it_is_offline_and_says_so(command, run_folder, monkeypatch, own_service):
    """As on a cluster's node."""
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(wandb_run, "_PATIENCE", 1.0)
    outcome = command("train", *TINY, "compare=false")
    assert outcome.code == 0, outcome.err
    (line,) = [line for line in outcome.out.splitlines() if "W&B" in line]
    assert line.startswith("W&B: offline (no answer from http://127.0.0.1:9); upload with `wandb sync ")
    assert len([run for run in offline_runs(run_folder()) if "offline" in run.parts[-2]]) == 1 and not outcome.err
    error = command("train", *TINY, "logger.wandb.offline=false").error
    assert error.startswith("logger.wandb.offline=False: no answer from http://127.0.0.1:9 (") and "; try true" in error


def test_jobs_of_a_sweep_are_runs_of_their_own_in_one_group(command, tmp_path):
    outcome = command("train", "--multirun", *TINY, "compare=false", "seed=1,2")
    assert outcome.code == 0, outcome.err
    (sweep,) = tmp_path.glob("runs/multirun/*/*")
    runs = offline_runs(sweep)
    assert len(runs) == 2 and len({run.name for run in runs}) == 2
    assert all(sweep.name.encode() in content(run) for run in runs)


def test_a_resumed_run_goes_on_in_its_wandb_run(command, run_folder):
    command("train", *TINY, "compare=false")
    before = (run_folder() / "wandb_id").read_text()
    outcome = command("train", *TINY, "compare=false", "ckpt_path=last", "meta.outer_steps=6")
    assert outcome.code == 0, outcome.err
    assert (run_folder() / "wandb_id").read_text() == before
    assert len({run.name for run in offline_runs(run_folder())}) == 1
