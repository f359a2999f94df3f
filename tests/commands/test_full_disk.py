"""A disk that is full, or a limit on the size of files: the file is named, and what was there stays whole."""

import errno
import json
import resource

import pytest

from ph_l2o.checkpoints import read_checkpoint
from ph_l2o.commands.sweeps import multirun, sweep_folder


@pytest.fixture
def limited(command):
    """Run a command that can write so many bytes into a file."""

    def run(size: int, *arguments: str):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            return command("train", *arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return run


TINY = ("debug=default", "optimizer=adam", "evaluation.baselines=[sgd]")


@pytest.mark.parametrize(("size", "name"), [
    (1_000, None),
    (10_000, "checkpoints/best.ckpt"),
    (25_000, "curves.png"),
])  # fmt: skip
def test_the_file_is_named(limited, run_folder, size, name):
    outcome = limited(size, *TINY)
    lines = outcome.err.strip().splitlines()
    assert outcome.code == 1 and lines[-1].startswith("error: ")
    assert lines[-1].endswith("File too large; make room, or choose another folder with paths.runs=…")
    if name is None:  # Hydra's own record
        assert lines[-1].startswith("error: a file can't be read or written: ")
        return
    folder = run_folder()
    assert f"error: {folder / name}: " in lines[-1]
    assert not [p for p in folder.rglob(".*") if p.name not in (".lock", ".hydra")], "nothing half written is left"
    assert json.loads((folder / "status.json").read_text())["status"] == "error"


def test_a_run_goes_on_when_there_is_room_again(limited, command, run_folder):
    command("train", *TINY, "compare=false")
    last = run_folder() / "checkpoints" / "last.ckpt"
    before = read_checkpoint(last)
    outcome = limited(last.stat().st_size // 2, f"ckpt_path={last}", "meta.outer_steps=6")
    assert ".ckpt: File too large" in outcome.error
    assert read_checkpoint(last)["global_step"] == before["global_step"]
    assert command("train", f"ckpt_path={last}").code == 0
    assert read_checkpoint(last)["global_step"] == 6


def test_a_sweep_says_which_of_its_files_is_lacking(command, tmp_path, monkeypatch):
    folder = tmp_path / "sweep"
    original = multirun.report

    def without_room(place):
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limit[1]))
        try:
            return original(place)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    monkeypatch.setattr(multirun, "report", without_room)
    outcome = command("train", "--multirun", *TINY, "compare=false", "seed=1,-1", "hydra.sweep.dir=sweep")
    lines = outcome.err.strip().splitlines()
    assert outcome.code == 1 and not [line for line in lines if "Traceback" in line]
    assert "report.html: File too large; make room, or choose another folder with paths.runs=…" in lines[-1]
    assert lines[-1].endswith("`python -m ph_l2o.report sweep` makes table and page")
    assert (folder / "summary.csv").is_file()


def test_a_sweep_that_cannot_be_written_names_its_folder(command, monkeypatch):
    def read_only(path, message, **more):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(sweep_folder, "hold", read_only)
    error = command("train", "--multirun", *TINY, "seed=1,2", "hydra.sweep.dir=sweep").error
    assert error == "sweep/.lock: Read-only file system; choose another folder with paths.runs=…"
