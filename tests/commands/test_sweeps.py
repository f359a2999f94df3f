"""Sweeps in one process: jobs that fail, what they leave, and sweeps that go on."""

import csv
import fcntl
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from trouble import TYPED

from ph_l2o import cli
from ph_l2o.commands import recording
from ph_l2o.commands.sweeps import multirun, sweep_folder
from ph_l2o.commands.sweeps.sweep_names import legal_name
from ph_l2o.meta import MetaLearner

ROOT = Path(__file__).parents[2]
TINY = ("--multirun", "debug=default", "optimizer=sgd", "compare=false")


def summary(sweep):
    with (sweep / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def sweeps(tmp_path):
    """The folders of all sweeps, oldest first."""
    return lambda: sorted(path.parent for path in tmp_path.glob("runs/multirun/*/*/sweep.json"))


def test_the_other_jobs_run(command, sweeps, monkeypatch):
    """One fails before its work, one in it, one by a bug, and one learns nothing."""
    original = MetaLearner.training_step

    def breaks(self, batch, batch_idx):
        if self.seed == 1 and self.global_step == 1:
            raise OSError(28, "No space left on device", "metrics.csv")
        if self.seed == 2:
            raise KeyError("a bug")
        loss = original(self, batch, batch_idx)
        return loss * float("nan") if self.seed == 3 else loss

    monkeypatch.setattr(MetaLearner, "training_step", breaks)
    outcome = command("train", *TINY, "seed=-1,1,2,3,4")
    (sweep,) = sweeps()
    assert [row["status"] for row in summary(sweep)] == ["error", "error", "error", "diverged", "ok"]
    reasons = [row["error"] for row in summary(sweep)]
    assert reasons[0] == "seed=-1: must be a whole number >= 0"
    assert reasons[1].startswith("metrics.csv: No space left on device; ")
    assert reasons[2] == "KeyError('a bug')"
    assert reasons[3].startswith("none of 4 outer steps had a finite meta-gradient")
    jobs = [f"{k}_quadratic_sgd_seed{seed}" for k, seed in enumerate((-1, 1, 2))]
    assert outcome.error == f"3 of 5 jobs failed: {', '.join(jobs)}; summary.csv says why"


@pytest.mark.parametrize(("sweeper", "raises"), [({}, False), ({"max_failure_rate": 0.5}, True)])
def test_a_sweeper_that_counts_failures_gets_the_error(monkeypatch, tmp_path, sweeper, raises):
    monkeypatch.setattr(multirun.HydraConfig, "get", lambda: type("C", (), {"sweeper": sweeper}))
    error = ValueError("x=1: must be 2")
    if raises:
        with pytest.raises(ValueError, match="x=1"):
            multirun.record_failure(error, "x=1: must be 2", tmp_path)
        with pytest.raises(RuntimeError, match="ended by SIGKILL"):
            multirun.record_end(-9, None, tmp_path)
        multirun.write_status(tmp_path, "error", error="x=1: must be 2")
    else:
        assert multirun.record_failure(error, "x=1: must be 2", tmp_path) == multirun.DIVERGED_SCORE
    assert multirun.read_status(tmp_path) == {"status": "error", "error": "x=1: must be 2"}
    multirun.write_status(tmp_path, "diverged")
    assert multirun.record_failure(error, None, tmp_path) == multirun.DIVERGED_SCORE
    assert multirun.read_status(tmp_path)["status"] == "diverged"


def test_a_job_can_be_sent_to_another_process(monkeypatch):
    """It makes what configurations use known there, as for Hydra's joblib launcher."""
    calls = []
    monkeypatch.setattr(cli, "register", lambda: calls.append(1))
    job = pickle.loads(pickle.dumps(cli._Job("train", cli._train)))
    assert calls == [1] and (job.config_name, job.work) == ("train", cli._train)


def numbers(sweep):
    """Both tables, without times."""
    with (sweep / "summary_over_seeds.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in summary(sweep)], list(csv.DictReader(file))


def test_a_killed_sweep_goes_on_by_the_same_command(command, sweeps, tmp_path, monkeypatch):
    """The whole process is killed in its second of three jobs, between two validations."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    typed = (*TINY[:3], "seed=4,2,1", "meta.outer_steps=6", "evaluation.baselines=[sgd]", *TYPED)
    path = os.pathsep.join([str(Path(__file__).parent), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    script = [sys.executable, str(ROOT / "train.py")]
    killed = subprocess.run([*script, *typed], env=environment, capture_output=True, text=True, timeout=500)
    assert killed.returncode == -9, killed.stderr
    (sweep,) = sweeps()
    assert [row["status"] for row in summary(sweep)] == ["ok"]
    began = (sweep / "0_quadratic_sgd_seed4" / "status.json").stat().st_mtime_ns
    monkeypatch.setenv("NOT_KILLED", "1")
    outcome = command("train", *typed)
    assert sweeps() == [sweep]
    assert "going on with the sweep in" in outcome.out and "0_quadratic_sgd_seed4: is ok already" in outcome.out
    assert "resuming from" in outcome.out
    assert (sweep / "0_quadratic_sgd_seed4" / "status.json").stat().st_mtime_ns == began
    assert [row["status"] for row in summary(sweep)] == ["ok", "ok", "error"]
    assert outcome.error.startswith("1 of 3 jobs failed: 2_quadratic_sgd_seed1: metrics.csv: No space left on device; ")
    expected = numbers(sweep)
    sweep.rename(tmp_path / "killed")
    assert command("train", *typed).code == 1
    assert numbers(sweeps()[0]) == expected
    assert (sweeps()[0] / "sweep.png").is_file() and (tmp_path / "killed" / "sweep.png").is_file()


def test_a_sweep_that_is_asked_to_end_says_how_it_goes_on(command, sweeps, monkeypatch):
    original = MetaLearner.training_step

    def asked(self, batch, batch_idx):
        if self.seed == 2 and self.global_step == 1:
            signal.raise_signal(signal.SIGTERM)
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(MetaLearner, "training_step", asked)
        outcome = command("train", *TINY, "seed=1,2")
    assert outcome.code == 128 + signal.SIGTERM
    assert outcome.err == "interrupted by SIGTERM; the same command goes on with this sweep\n"
    (sweep,) = sweeps()
    assert json.loads((sweep / "1_quadratic_sgd_seed2" / "status.json").read_text())["status"] == "interrupted"
    outcome = command("train", *TINY, "seed=1,2")
    assert outcome.code == 0, outcome.err
    assert sweeps() == [sweep] and "resuming from" in outcome.out
    assert [row["status"] for row in summary(sweep)] == ["ok", "ok"]


def test_what_is_finished_is_not_run_again_and_settings_do_not_mix(command, sweeps):
    assert command("train", *TINY, "seed=1,2", "meta.val_every=4").code == 0
    (first,) = sweeps()
    assert command("train", *TINY, "seed=1,2", "meta.val_every=4").code == 0  # finished, so that this is a new one
    assert len(sweeps()) == 2
    named = f"hydra.sweep.dir={os.path.relpath(first)}"
    outcome = command("train", *TINY, "seed=2,3", "meta.val_every=4", named)
    assert "1_quadratic_sgd_seed2: is ok already" in outcome.out
    assert [row["job"] for row in summary(first)] == [
        "0_quadratic_sgd_seed1", "1_quadratic_sgd_seed2", "1_quadratic_sgd_seed3",
    ]  # fmt: skip
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    error = command("train", *TINY, "seed=1,2", "meta.val_every=2", named).error
    assert "holds a sweep with other settings (meta); take another folder" in error
    lock = recording.hold(first / ".lock", "")
    assert "this sweep is still running" in command("train", *TINY, "seed=1,2", "meta.val_every=4", named).error
    lock.release()
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before
    assert len(sweeps()) == 2


def test_jobs_wait_for_another_process_and_are_of_one_configuration(command, sweeps, monkeypatch):
    assert command("train", *TINY, "seed=1").code == 0
    (sweep,) = sweeps()
    config = sweep / "0_quadratic_sgd_seed1" / "config.yaml"
    original = recording.hold

    def hold_later(path, message, *, wait=False):
        if wait:
            threading.Timer(0.5, fcntl.flock, (lock, fcntl.LOCK_UN)).start()
        return original(path, message, wait=wait)

    with (config.parent / ".lock").open() as lock, monkeypatch.context() as patch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        patch.setattr(recording, "hold", hold_later)
        outcome = command("train", *TINY, "seed=1", f"hydra.sweep.dir={os.path.relpath(sweep)}")
    assert re.search("0_quadratic_sgd_seed1: another process is still at it[^$]*is ok already", outcome.out)
    config.write_text(config.read_text().replace("outer_steps: 4", "outer_steps: 5"))
    before = (config.parent / "status.json").read_bytes()
    error = command("train", *TINY, "seed=1", f"hydra.sweep.dir={os.path.relpath(sweep)}").error
    assert error.startswith("0_quadratic_sgd_seed1: was run with other settings of meta; start a new sweep")
    assert (config.parent / "status.json").read_bytes() == before


def test_a_sweep_of_evaluations(command, sweeps):
    typed = ("optimizers=[sgd,adam]", "horizon=3,4", "num_problems=2", "tuning_problems=2")
    outcome = command("evaluate", "--multirun", *typed)
    assert outcome.code == 0, outcome.err
    (sweep,) = sweeps()
    rows = summary(sweep)
    assert [row["job"] for row in rows] == ["0_evaluate_quadratic_horizon-3", "1_evaluate_quadratic_horizon-4"]
    assert [(row["horizon"], row["status"], row["optimizer"]) for row in rows] == [
        ("3", "ok", "sgd"),
        ("4", "ok", "sgd"),
    ]
    outcome = command("evaluate", "--multirun", *typed, f"hydra.sweep.dir={os.path.relpath(sweep)}")
    assert outcome.out.count("is ok already") == 2


def test_a_sweep_from_a_checkpoint_says_what_was_swept(command, sweeps, run_folder):
    assert command("train", *TINY[1:]).code == 0
    last = run_folder() / "checkpoints" / "last.ckpt"
    outcome = command("train", *TINY, f"ckpt_path={last}", "meta.outer_steps=6,3,8")
    (sweep,) = sweeps()
    assert [(row["meta.outer_steps"], row["status"]) for row in summary(sweep)] == [
        ("6", "ok"), ("3", "error"), ("8", "ok"),
    ]  # fmt: skip
    assert outcome.code == 1 and "debug" not in summary(sweep)[0]


def test_a_mistake_leaves_nothing_behind(command, left_behind):
    assert "optimizer=nonsense: no such option" in command("train", *TINY[:2], "optimizer=sgd,nonsense").error
    assert left_behind() == []


@pytest.mark.parametrize(("launcher", "extra"), [
    ("joblib", "joblib"), ("submitit_local", "slurm"), ("submitit_slurm", "slurm"), ("ray", "ray"),
])  # fmt: skip
def test_a_launcher_without_its_package_names_the_extra(command, left_behind, monkeypatch, launcher, extra):
    monkeypatch.setattr(sweep_folder, "_is_installed", lambda module: False)
    error = command("train", *TINY, f"hydra/launcher={launcher}", "seed=1,2").error
    assert error == f"hydra/launcher={launcher}: needs a package that is not installed; pip install 'ph-l2o[{extra}]'"
    assert left_behind() == []


words = st.text(min_size=1, max_size=150)


@given(st.dictionaries(words, words, min_size=1, max_size=4), st.none() | st.integers(0, 99))
def test_names_of_jobs_are_legal_and_can_be_typed(swept, seed):
    name = legal_name("mnist_lstm", swept, seed)
    assert re.fullmatch(r"[\w.+@-]{1,120}", name, re.ASCII)
    override = OverridesParser.create().parse_override(f"ckpt_path=runs/3_{name}/checkpoints/last.ckpt")
    assert override.value() == f"runs/3_{name}/checkpoints/last.ckpt"


def test_different_values_have_different_names():
    values = ["0.1", "0.01", "[a,b]", "[a,c]", "[a, b]", "a b", "a+b", "x" * 200, "x" * 201, "ä", "ö", "null", ""]
    assert len({legal_name("q", {"key": value}) for value in values}) == len(values)
    assert legal_name("mnist_lstm", {"task": "mnist", "meta.learning_rate": "0.01", "seed": "2"}, 2) == (
        "mnist_lstm_meta.learning_rate-0.01_seed2"
    )


def test_the_record_of_a_sweep_is_plain(command, sweeps):
    command("train", *TINY, "seed=1,2")
    record = json.loads((sweeps()[0] / "sweep.json").read_text())
    assert record["finished"] and record["command"] == "train" and "seed" not in record["config"]
