"""Runs that are killed, at moments that matter, in processes of the script that kills at random."""

import os
import signal
from pathlib import Path

import killed_runs  # type: ignore[import-not-found]
import pytest

from ph_l2o import cli, files
from ph_l2o.commands import run_comparison
from ph_l2o.meta import metrics_csv

TINY = (*killed_runs.SETTINGS, "meta.outer_steps=14", "evaluation.horizon=3", "evaluation.num_problems=2")


def die(*arguments, **more) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_last_checkpoint() -> None:
    """At its second time, when the new one is written but not in place; that of `best.ckpt` is."""
    original, seen = os.replace, []

    def replace(source, target):
        seen.append(Path(target).name)
        return die() if seen.count("last.ckpt") == 2 else original(source, target)

    files.os.replace = replace


def in_metrics() -> None:
    """In the middle of a row."""
    original = metrics_csv.MetricsCSV._append

    def append(self, rows) -> None:
        if rows[0]["outer_step"] > 5:
            with self.path.open("a") as file:
                file.write("1")  # of 11
            die()
        original(self, rows)

    metrics_csv.MetricsCSV._append = append


def in_comparison() -> None:
    """When its table is written, but not its JSON file."""
    run_comparison.Comparison.to_json = die  # type: ignore[assignment]


def child(folder, moment) -> None:
    os.chdir(folder)
    moment()
    killed_runs.sys.argv = ["train.py", *TINY]
    cli.train()


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert killed_runs.run(folder, *TINY)[0] == 0
    return killed_runs.result(folder)


@pytest.mark.parametrize("moment", [in_last_checkpoint, in_metrics, in_comparison])
def test_a_killed_run_becomes_the_one_that_was_not(tmp_path, monkeypatch, expected, moment):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    process = killed_runs.multiprocessing.get_context("forkserver").Process(target=child, args=(tmp_path, moment))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (last,) = tmp_path.glob("runs/20*/*/checkpoints/last.ckpt")
    assert killed_runs.run(tmp_path, f"ckpt_path={last}")[0] == 0, (tmp_path / "output.txt").read_text()
    assert killed_runs.result(tmp_path) == expected
    assert not list(tmp_path.rglob(".last*")), "what was half written is left"
