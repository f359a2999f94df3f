"""Loggers, callbacks and arguments of the trainer from outside the package, by the command line alone."""

import sys

import pytest

TINY = ("debug=default", "compare=false")
OWN = """
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.loggers.logger import Logger


class Own(Logger):
    def __init__(self, path: str):
        super().__init__()
        self.path = Path(path)

    name, version = "own", ""

    def log_hyperparams(self, params, *args, **kwargs):
        self.path.write_text(f"seed {params['seed']}\\n")

    def log_metrics(self, metrics, step=None):
        with self.path.open("a") as file:
            file.write("".join(f"{name}\\n" for name in metrics))


class Stop(pl.Callback):
    def on_train_batch_end(self, trainer, *args):
        trainer.should_stop = True
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_parts.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_parts", None)


def test_a_logger_and_a_callback_from_outside(command, own, tmp_path, run_folder):
    outcome = command(
        "train", *TINY, "plugins=[own_parts]", "+logger.own={_target_: own_parts.Own, path: log.txt}",
        "+callbacks.stop={_target_: own_parts.Stop}",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert lines[0] == "seed 0" and "train/outer_loss" in lines
    assert len((run_folder() / "metrics.csv").read_text().splitlines()) == 2, "the callback stops it after a step"


def test_tensorboard(command, run_folder):
    outcome = command("train", *TINY, "logger=tensorboard")
    assert outcome.code == 0, outcome.err
    assert list((run_folder() / "tensorboard").glob("events.*"))
    assert (run_folder() / "metrics.csv").is_file()


def test_no_logger(command, run_folder):
    outcome = command("train", *TINY, "logger=none")
    assert outcome.code == 0, outcome.err
    assert not (run_folder() / "metrics.csv").exists() and (run_folder() / "checkpoints" / "best.ckpt").is_file()


def test_any_argument_of_the_trainer(command):
    outcome = command("train", *TINY, "+trainer.enable_model_summary=true")
    assert outcome.code == 0, outcome.err
    assert "Trainable params" in outcome.out + outcome.err


@pytest.mark.parametrize(
    "argument, words",
    [
        ("+trainer.max_steps=3", ("trainer.max_steps", "meta.outer_steps")),
        ("+trainer.devices=2", ("trainer.devices", "strategy")),
        ("+trainer.enable_model_sumary=true", ("enable_model_summary",)),
        ("+callbacks.stop={_target_: elsewhere.Stop}", ("_target_=elsewhere.Stop", "plugins")),
        ("+logger.csv.flush=3", ("logger.csv.flush", "flush_every")),
    ],
)
def test_what_can_not_be_set_is_one_line(command, tmp_path, argument, words):
    error = command("train", *TINY, argument).error
    assert all(word in error for word in words), error
    assert not list(tmp_path.glob("runs/*/*")), "a folder is left behind"
