"""W&B's server and process fail: the training goes on, and one line says what happened."""

import logging
import os
import resource

import pytest
import wandb
from wandb_stand_ins import StandIn, files, written

from ph_l2o.meta import wandb_run

TINY = ("debug=default", "logger=wandb", "compare=false")


@pytest.fixture(autouse=True)
def own_service(command, monkeypatch, tmp_path):
    """W&B reads its environment once, and a try that failed stays with its process."""
    for variable in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))
    monkeypatch.setattr(wandb_run, "_PATIENCE", 1.0)
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def stand_in(monkeypatch):
    """A server in the place of W&B's, and a key for it."""
    servers = []

    def start(mood: str) -> StandIn:
        servers.append(StandIn(mood))
        monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
        monkeypatch.setenv("WANDB_BASE_URL", servers[0].url)
        return servers[0]

    yield start
    for server in servers:
        server.end()


def lines(outcome) -> list[str]:
    assert outcome.code == 0, outcome.err
    assert not outcome.err
    return [line for line in outcome.out.splitlines() if "W&B" in line or line.startswith("wandb")]


def test_with_a_key_but_without_a_route_it_is_offline_and_says_so(command, run_folder, monkeypatch):
    """As on a cluster's node."""
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    (line,) = lines(command("train", *TINY))
    assert line.startswith("W&B: offline (no answer from http://127.0.0.1:9); upload with `wandb sync ")
    assert len([run for run in files(run_folder()) if "offline" in run.parts[-2]]) == 1
    error = command("train", *TINY, "logger.wandb.offline=false").error
    assert error.startswith("logger.wandb.offline=False: no answer from http://127.0.0.1:9 (") and "; try true" in error


@pytest.mark.parametrize("mood", [pytest.param("500", marks=pytest.mark.slow), "hangs"])
def test_a_server_that_answers_badly_or_not_at_all_leaves_the_run_offline(command, stand_in, mood):
    server = stand_in(mood)
    (line,) = lines(command("train", *TINY))
    assert line.startswith(f"W&B: offline (no answer from {server.url}); upload with `wandb sync ") and server.asked


class _AtStep3(logging.Handler):
    """Does something in the middle of a training: at its first validation."""

    def __init__(self, work):
        super().__init__()
        self.work = work

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("outer step 2: validation"):
            self.work()


@pytest.fixture
def in_the_middle():
    progress, handlers = logging.getLogger("ph_l2o.meta.progress"), []

    def do(work) -> None:
        handlers.append(_AtStep3(work))
        progress.addHandler(handlers[0])

    yield do
    for handler in handlers:
        progress.removeHandler(handler)


@pytest.mark.parametrize(
    "mood", [pytest.param("500", marks=pytest.mark.slow), pytest.param("hangs", marks=pytest.mark.slow), "gone"]
)
def test_a_server_that_fails_in_the_middle(command, run_folder, stand_in, in_the_middle, monkeypatch, mood):
    monkeypatch.setattr(wandb_run, "_PATIENCE", 20.0)
    monkeypatch.setattr(wandb_run, "_UPLOAD_PATIENCE", 2.0)
    server = stand_in("good")
    in_the_middle(server.end if mood == "gone" else lambda: setattr(server, "mood", mood))
    said = lines(command("train", *TINY, "logger.wandb.checkpoints=false"))
    assert said[0] == f"W&B: {server.url}/mine/ph_l2o/runs/stand_in"
    assert said[1].startswith("W&B: stopped (") and "the run goes on without it; upload with `wandb sync " in said[1]
    assert len(said) == 2
    (path,) = files(run_folder())
    assert len(written(path).column("train/outer_loss")) == 4, "all of it is on the disk"


def _process():
    return wandb.setup()._connection._proc._process


def test_a_job_of_a_sweep_whose_process_of_wandb_is_killed_goes_on_and_the_next_has_its_own(
    command, tmp_path, in_the_middle
):
    killed = []
    in_the_middle(lambda: killed or (_process().kill(), _process().wait(), killed.append(1)))
    outcome = command("train", "--multirun", *TINY, "seed=1,2")
    said = lines(outcome)
    assert [line.partition(" (")[0] for line in said] == ["W&B: offline", "W&B: stopped", "W&B: offline"]
    second = written(max(files(tmp_path / "runs"), key=lambda path: path.parts[-4]))
    assert second.exit_code == 0 and second.run.display_name.endswith("seed2")
    assert len(second.column("train/outer_loss")) == 4


def test_a_process_of_wandb_that_hangs_does_not_hold_up_the_run(command, monkeypatch, in_the_middle):
    monkeypatch.setattr(wandb_run, "_UPLOAD_PATIENCE", 1.0)
    monkeypatch.setattr(wandb_run, "_MORE_PATIENCE", 1.0)
    in_the_middle(lambda: os.kill(_process().pid, 19))
    said = lines(command("train", *TINY))
    assert "W&B: stopped (no answer in 2 s), the run goes on without it; upload with" in said[1] and len(said) == 2


def test_a_full_disk(command, run_folder, monkeypatch):
    """A limit on the size of files, which only W&B's reaches."""
    monkeypatch.setattr(wandb_run, "_WRITING_PATIENCE", 2.0)
    monkeypatch.setattr("ph_l2o.commands.train.report", lambda folder: None)  # which is larger
    long = ("meta.outer_steps=150", "meta.val_every=75", "optimizer=adam", "logger.wandb.checkpoints=false")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, hard))
    try:
        said = lines(command("train", *TINY, *long))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(said) == 2 and "could not be written to its end, is the disk full?" in said[1]
    assert len((run_folder() / "metrics.csv").read_text().splitlines()) == 151
