"""Jobs of a sweep that fail: they are recorded, the others run, and the exit status says so."""

import csv
import pickle

import pytest

from ph_l2o import cli
from ph_l2o.commands import multirun
from ph_l2o.meta import MetaLearner


def summary(tmp_path):
    (path,) = tmp_path.glob("runs/multirun/*/*/summary.csv")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_other_jobs_run(command, tmp_path, monkeypatch):
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
    outcome = command("train", "--multirun", "debug=default", "optimizer=sgd", "compare=false", "seed=-1,1,2,3,4")
    assert [row["status"] for row in summary(tmp_path)] == ["error", "error", "error", "diverged", "ok"]
    reasons = [row["error"] for row in summary(tmp_path)]
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
