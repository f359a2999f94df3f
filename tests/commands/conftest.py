"""Run the commands in this process: an import of torch for each would cost minutes."""

import contextlib
import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from ph_l2o import cli
from ph_l2o.commands.configuration import register


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of an error."""
        lines = self.err.strip().splitlines()
        assert self.code == 1, self
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        return lines[0].removeprefix("error: ")


Run = Callable[..., Outcome]


@pytest.fixture
def command(tmp_path, monkeypatch, capfd) -> Run:
    """Type `train.py …` or `evaluate.py …` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")

    def run(name: str, *arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        before, threads = dict(os.environ), torch.get_num_threads()
        handlers = list(logging.getLogger().handlers)
        capfd.readouterr()
        code = 0
        try:
            getattr(cli, name)()
        except SystemExit as stop:
            if isinstance(stop.code, str):
                print(stop.code, file=sys.stderr)
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        finally:
            GlobalHydra.instance().clear()
            logging.disable(logging.NOTSET)  # as a process of several may have set it
            torch.set_num_threads(threads)
            torch.set_flush_denormal(False)
            for key in set(os.environ) - set(before):
                del os.environ[key]
            for handler in set(logging.getLogger().handlers) - set(handlers):
                handler.close()
            logging.getLogger().handlers[:] = handlers
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def run_folder(tmp_path) -> Callable[[], Path]:
    """The only run's folder."""

    def find() -> Path:
        (folder,) = [p for p in tmp_path.glob("runs/20*/*") if p.is_dir()]
        return folder

    return find


@pytest.fixture
def left_behind(tmp_path) -> Callable[[], list[str]]:
    """What the commands left in their folder."""
    return lambda: sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*"))


@contextlib.contextmanager
def _composing() -> Iterator[Callable[..., DictConfig]]:
    gc.freeze()  # composing makes many objects, and would have those of torch looked through again and again
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(cli.conf_dir(), version_base="1.3"):
        yield lambda *overrides, command="train": compose(command, overrides=list(overrides))


@pytest.fixture(scope="session")
def composing() -> Callable[[], contextlib.AbstractContextManager[Callable[..., DictConfig]]]:
    """A context that gives what `composed` is."""
    return _composing


@pytest.fixture
def composed() -> Iterator[Callable[..., DictConfig]]:
    """Compose the configuration of `train`, or of another command."""
    with _composing() as compose_it:
        yield compose_it
