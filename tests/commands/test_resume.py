"""A run that is stopped goes on as if nobody had stopped it, with the settings that it had."""

import csv
import json
import signal
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from ph_l2o.commands import run_comparison
from ph_l2o.commands.recording import held
from ph_l2o.meta import executors, learner

SETTINGS = (
    "debug=default", "optimizer=adam", "seed=3", "meta.outer_steps=7", "meta.val_every=3", "meta.episodes=4",
    "meta.learning_rate=0.02", "evaluation.baselines=[sgd]",
)  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "run.log"
    }


def result(folder: Path):
    """All that a run gives, without its speed."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [{k: v for k, v in row.items() if "steps_per_s" not in k} for row in csv.DictReader(file)]
    compared = json.loads((folder / "comparison.json").read_text())["rows"]
    numbers = [{k: v for k, v in row.items() if "seconds" not in k} for row in compared]
    states = [torch.load(folder / "checkpoints" / f"{n}.ckpt", weights_only=True) for n in ("best", "last")]
    tensors = [[*state["state_dict"].values(), *state["optimizer_states"][0]["state"][0].values()] for state in states]
    return rows, numbers, [[t.tolist() for t in part] for part in tensors]


def last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def undisturbed():
    return {}


@pytest.fixture
def expected(command, run_folder, undisturbed):
    """The result of the run that nobody stops; it is run once."""
    if not undisturbed:
        outcome = command("train", *SETTINGS)
        assert outcome.code == 0, outcome.err
        undisturbed["result"] = result(run_folder())
        run_folder().rename("undisturbed")
    return undisturbed["result"]


def signal_at(monkeypatch, place, name, call, number):
    """Send this process a signal in the middle of a call of a function."""
    original, calls = getattr(place, name), []

    def sends(*args, **kwargs):
        calls.append(None)
        if len(calls) == call:
            signal.raise_signal(number)
        return original(*args, **kwargs)

    monkeypatch.setattr(place, name, sends)


@pytest.mark.parametrize(("place", "name", "call", "number", "step"), [
    (executors.ExecutorChoice, "estimate", 1, signal.SIGTERM, 0),
    (executors.ExecutorChoice, "estimate", 6, signal.SIGHUP, 5),
    (learner.MetaLearner, "_log_step", 2, signal.SIGTERM, 2),  # between two outer steps
    (learner, "mean_over_processes", 2, signal.SIGINT, 6),  # after a validation
    (learner, "validate", 1, signal.SIGTERM, 3),
    (learner, "validate", 3, signal.SIGTERM, 6),  # the last one, whose steps are done again
    (run_comparison, "compare", 1, signal.SIGTERM, 7),
])  # fmt: skip
def test_a_signal_ends_it_with_a_checkpoint(
    command, run_folder, monkeypatch, expected, place, name, call, number, step
):
    with monkeypatch.context() as patch:
        signal_at(patch, place, name, call, number)
        outcome = command("train", *SETTINGS)
    folder = run_folder()
    assert outcome.code == 128 + number
    assert outcome.err.splitlines() == [
        f"interrupted by {number.name}; resume with `python train.py ckpt_path={last(folder).relative_to(Path.cwd())}`"
    ]
    assert json.loads((folder / "status.json").read_text())["status"] == "interrupted"
    assert torch.load(last(folder), weights_only=True)["global_step"] == step
    outcome = command("train", f"ckpt_path={last(folder)}")
    assert outcome.code == 0, outcome.err
    assert "changed" not in outcome.out
    assert ("meta-training is done" in outcome.out) == (place is run_comparison)
    assert result(folder) == expected
    assert json.loads((folder / "status.json").read_text())["status"] == "ok"


def test_what_is_typed_comes_on_top_and_earlier_settings_are_kept(command, run_folder):
    command("train", *SETTINGS, "compare=false", "+callbacks.lr._target_=pytorch_lightning.callbacks.Timer")
    folder = run_folder()
    before, record = (folder / "config.yaml").read_text(), (folder / ".hydra" / "overrides.yaml").read_text()
    typed = ("optimizer=adam", "meta.outer_steps=9", "meta.learning_rate=0.02", "callbacks=default", "logger=none")
    outcome = command("train", f"ckpt_path={last(folder)}", *typed)
    assert outcome.code == 0, outcome.err
    changed = [line for line in outcome.out.splitlines() if line.startswith("changed: ")]
    assert changed[-1] == "changed: meta.outer_steps: 7 -> 9" and len(changed) == 4  # the keys of logger.csv
    now = OmegaConf.load(folder / "config.yaml")
    assert (now.seed, now.meta.outer_steps, now.meta.episodes, now.meta.learning_rate) == (3, 9, 4, 0.02)
    assert now.logger == {} and now.callbacks.lr._target_.endswith("Timer")
    assert (folder / "config.1.yaml").read_text() == before
    assert (folder / ".hydra" / "overrides.yaml").read_text() == record
    # Again, without typing anything: a bare copy of the checkpoint knows its settings too.
    copy = Path("copy.ckpt")
    copy.write_bytes(last(folder).read_bytes())
    outcome = command("train", f"ckpt_path={copy}", "meta.outer_steps=10")
    assert outcome.code == 0, outcome.err
    assert "the callback pytorch_lightning.callbacks.Timer is not taken from a file" in outcome.out + outcome.err
    (other,) = [p.parent for p in Path("runs").glob("*/*/config.yaml") if p.parent.name != folder.name]
    again = OmegaConf.load(other / "config.yaml")
    assert (again.seed, again.meta.outer_steps, again.meta.learning_rate) == (3, 10, 0.02)


def test_a_resume_that_is_refused_leaves_the_run_as_it_was(command, run_folder):
    command("train", *SETTINGS, "compare=false")
    folder = run_folder()
    before = contents(folder)
    for typed, text in (
        ("meta.outer_steps=7", "has done 7 already"),
        ("optimizer=lstm", "holds another optimizer"),
        ("meta.outer_steps=-1", "meta.outer_steps=-1: must be"),
        ("meta.outer_stepz=9", "meta.outer_stepz: no such key"),
    ):
        assert text in command("train", f"ckpt_path={last(folder)}", typed).error
        assert contents(folder) == before
    with held(folder):
        error = command("train", f"ckpt_path={last(folder)}", "meta.outer_steps=9").error
    assert error == f"{folder.relative_to(Path.cwd())}: this run is still running; wait until it ends, or stop it"
    assert contents(folder) == before
    (folder / "config.yaml").write_text("a: [")
    assert "config.yaml: can't be read" in command("train", f"ckpt_path={last(folder)}").error
