"""A disk that is full, or a limit on the size of files: the file is named, and what was there stays whole."""

import json
import resource

import pytest

from ph_l2o.checkpoints import read_checkpoint


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
