"""`meta_train` in a notebook: Stop returns what there is, `ckpt_path` goes on, and progress is shown."""

import logging
import os
import signal
import sys
import threading
import time
import types
import weakref
from typing import Any

import pytest
import torch
from rich.console import Console

from ph_l2o import meta_train
from ph_l2o.errors import CheckpointError
from ph_l2o.interruption import Interrupted, Interruption
from ph_l2o.meta import executors, progress
from ph_l2o.optimizers import Adam, PortHamiltonian
from ph_l2o.tasks import Quadratic

SMALL: dict[str, Any] = {
    "num_problems": 2, "horizons": (6, 9), "truncation": 3, "val_every": 4, "val_problems": 2, "val_horizon": 3,
    "episodes": 3, "windows": 2, "compile": False, "outer_steps": 10,
}  # fmt: skip


def train(folder=None, optimizer=None, **settings):
    torch.manual_seed(0)
    optimizer = optimizer or PortHamiltonian(hidden_size=4)
    return meta_train(optimizer, Quadratic(3), output_dir=folder, **(SMALL | settings))


def weights(path):
    return torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture
def stop_at(monkeypatch):
    """Send a signal when a window begins."""
    original = executors.ExecutorChoice.estimate

    def at(window: int, number: int) -> None:
        calls = []

        def estimate(self, *arguments):
            calls.append(None)
            if len(calls) == window:
                signal.raise_signal(number)
            return original(self, *arguments)

        monkeypatch.setattr(executors.ExecutorChoice, "estimate", estimate)

    return at


@pytest.mark.parametrize("window", [2, 13])
def test_stop_returns_what_there_is_and_the_training_goes_on(stop_at, tmp_path, capsys, window):
    """In the second window of an outer step, so that the first one is taken back."""
    train(tmp_path / "whole")
    stop_at(window + window % 2, signal.SIGINT)
    stopped = train(tmp_path / "stopped")
    assert "ckpt_path=" in capsys.readouterr().err.splitlines()[-1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    best = tmp_path / "stopped" / "checkpoints" / "best.ckpt"
    assert best.exists() == (window > 8)
    if window > 8:
        saved = torch.load(best, weights_only=True)["state_dict"]
        assert all(torch.equal(x, saved[f"optimizer.{name}"]) for name, x in stopped.state_dict().items())
    last = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    train(tmp_path / "stopped", ckpt_path=last)
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all(torch.equal(x, found[name]) for name, x in expected.items())
    with pytest.raises(ValueError, match=r"outer_steps=10: the checkpoint .* has done 10 already; ask for more"):
        train(tmp_path / "stopped", ckpt_path=last)
    with pytest.raises(CheckpointError, match="holds another optimizer than Adam"):
        train(optimizer=Adam(), ckpt_path=last, outer_steps=20)


def test_another_signal_goes_on_to_whoever_sent_the_training(stop_at):
    stop_at(1, signal.SIGTERM)
    with pytest.raises(Interrupted) as error:
        train()
    assert error.value.number == signal.SIGTERM


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_compilation_is_interrupted(monkeypatch, tmp_path):
    """It takes half a minute here when nobody interrupts it."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    sent = []

    def send() -> None:
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)

    timer = threading.Timer(1.5, send)
    timer.start()
    with pytest.raises(Interrupted):
        train(tmp_path, compile="step", outer_steps=10**6)
    timer.join()
    assert time.monotonic() - sent[0] < 10
    content = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["global_step"] == 0, "the first step was being compiled"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_python_loses_comes_again():
    """What is raised in the callback of a weak reference is only printed."""
    thing, began = Quadratic(3), time.monotonic()
    watch = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted), Interruption() as interruption, interruption.here():
        del thing
        assert watch() is None and interruption.number == signal.SIGTERM
        time.sleep(8)
    assert time.monotonic() - began < 5


def test_what_is_ignored_stays_ignored():
    """As SIGHUP under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption, interruption.here():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_without_effect_so_far_is_not_lost():
    with pytest.raises(Interrupted), Interruption():
        signal.raise_signal(signal.SIGTERM)


def test_progress_is_shown_where_nobody_reads_the_log(monkeypatch, capsys):
    monkeypatch.setattr(logging.getLogger("ph_l2o"), "level", logging.WARNING)
    train()
    assert "outer step 4: validation loss" in capsys.readouterr().err


def test_a_notebook_keeps_one_line_up_to_date(monkeypatch):
    shown = []
    handle = types.SimpleNamespace(update=lambda text: shown.append(("update", text)))
    display = types.SimpleNamespace(
        Pretty=str, display=lambda text, display_id: shown.append(("new", text)) or handle, clear_output=None
    )
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(progress, "Console", lambda **settings: Console(force_jupyter=True))
    monkeypatch.setattr(progress, "_NOTEBOOK_EVERY", 0.0)
    monkeypatch.setattr(logging.getLogger("ph_l2o"), "level", logging.WARNING)
    train()
    assert [kind for kind, _ in shown] == ["new"] + ["update"] * 9
    assert shown[-1][1].startswith("outer step 10/10, meta-loss ")
