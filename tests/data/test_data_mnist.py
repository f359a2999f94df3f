"""The real MNIST, and data sets of its format: small ones, and damaged ones."""

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from idx_files import IDX_FILES, idx_bytes

from ph_l2o.data import DataError, load_images
from ph_l2o.data.mnist import MNIST_MD5

FOLDER = Path("KMNIST") / "raw"
Write = Callable[[Path], Path]


def test_content(mnist_root: Path) -> None:
    data = load_images("mnist", mnist_root)
    assert data.train_images.shape == (60_000, 1, 28, 28)
    assert data.test_images.shape == (10_000, 1, 28, 28)
    assert data.train_images.dtype == data.test_images.dtype == torch.uint8
    assert data.train_labels.dtype == data.test_labels.dtype == torch.int64
    assert data.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert data.test_labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert data.num_classes == 10
    content = b"".join(t.numpy().tobytes() for t in data[:4])
    assert hashlib.sha256(content).hexdigest() == "1e35582d42a90940c55b956deb61875c020b567ed20e3c5b174f52bf7809ed9b"


def test_loading_is_quick_and_cached(mnist_root: Path) -> None:
    start = time.perf_counter()
    first = load_images("mnist", mnist_root)
    assert time.perf_counter() - start < 1.0
    assert load_images("mnist", str(mnist_root), download=False) is first


@pytest.mark.parametrize("index", range(4))
def test_one_changed_byte_is_found(mnist_root: Path, tmp_path: Path, index: int) -> None:
    folder = tmp_path / "MNIST" / "raw"
    shutil.copytree(mnist_root / "MNIST" / "raw", folder)
    path = folder / IDX_FILES[index]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{path.name}: content has md5 .*, expected {MNIST_MD5[index]}; delete it"):
        load_images("mnist", tmp_path)
    assert path.read_bytes() == content


def test_import_leaves_torchvision_and_filelock_alone() -> None:
    code = "import sys, ph_l2o.data; sys.exit(any(m in sys.modules for m in ('torchvision', 'filelock')))"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        assert process.wait() == 0


def test_data_sets_like_mnist(tmp_path: Path, write_idx: Write, small_idx: dict[str, bytes]) -> None:
    write_idx(tmp_path / FOLDER)
    data = load_images("kmnist", tmp_path)
    assert data.train_images.shape == (12, 1, 28, 28) and data.test_images.shape == (6, 1, 28, 28)
    assert data.train_images.numpy().tobytes() == small_idx[IDX_FILES[0]][16:]
    assert data.test_labels.tolist() == list(small_idx[IDX_FILES[3]][8:])


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_a_small_set_of_a_known_name_is_foreign(tmp_path: Path, write_idx: Write, name: str, folder: str) -> None:
    write_idx(tmp_path / folder / "raw")
    with pytest.raises(DataError, match="content has md5"):
        load_images(name, tmp_path)


def test_published_compressed_files_are_unpacked(
    tmp_path: Path, write_idx: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_idx(tmp_path / FOLDER)
    plain = load_images("kmnist", tmp_path)
    resources = []
    for path in sorted(folder.iterdir(), reverse=True):
        packed = gzip.compress(path.read_bytes(), mtime=0)
        resources.append((f"{path.name}.gz", hashlib.md5(packed).hexdigest()))
        (tmp_path / "packed" / FOLDER).mkdir(parents=True, exist_ok=True)
        (tmp_path / "packed" / FOLDER / f"{path.name}.gz").write_bytes(packed)
    monkeypatch.setattr(torchvision.datasets.KMNIST, "resources", resources)
    again = load_images("kmnist", tmp_path / "packed")
    assert all(np.array_equal(a, b) for a, b in zip(plain, again, strict=True))
    (tmp_path / "packed" / FOLDER / IDX_FILES[0]).unlink()
    (tmp_path / "packed" / FOLDER / f"{IDX_FILES[0]}.gz").write_bytes(b"another one")
    monkeypatch.setattr("ph_l2o.data.registry._loaded", {})
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte missing in .*no network in this test"):
        load_images("kmnist", tmp_path / "packed")
    assert (tmp_path / "packed" / FOLDER / f"{IDX_FILES[0]}.gz").read_bytes() == b"another one"


DAMAGES: dict[str, tuple[int, Callable[[bytes], bytes], str]] = {
    "empty": (0, lambda content: b"", "train-images-idx3-ubyte: torchvision cannot read it"),
    "truncated": (0, lambda content: content[:-1], "train-images-idx3-ubyte: torchvision cannot read it"),
    "longer": (1, lambda content: content + b"\0", "train-labels-idx1-ubyte: torchvision cannot read it"),
    "foreign": (2, lambda content: b"<!DOCTYPE html>" * 9, "t10k-images-idx3-ubyte: torchvision cannot read it"),
    "swapped": (0, lambda content: idx_bytes(np.zeros(12, np.uint8)), "ubyte: torchvision cannot read it"),
    "shape": (0, lambda c: idx_bytes(np.zeros((12, 32, 32), np.uint8)), r"train_images of shape \(12, 1, 32, 32\)"),
    "no images": (0, lambda content: idx_bytes(np.zeros((0, 28, 28), np.uint8)), "torchvision cannot read it"),
    "count": (3, lambda content: idx_bytes(np.zeros(5, np.uint8)), r"test_labels: .* of shape \(5,\) for 6 images"),
    "label": (1, lambda content: content[:-1] + b"\n", "train_labels: 0 to 10, expected 0 to 9"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_file(tmp_path: Path, write_idx: Write, kind: str) -> None:
    index, damage, problem = DAMAGES[kind]
    path = write_idx(tmp_path / FOLDER) / IDX_FILES[index]
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=problem) as caught:
        load_images("kmnist", tmp_path)
    message = str(caught.value)
    assert message.startswith(str(path.parent)) and message.endswith("run again") and "\n" not in message
    assert path.read_bytes() == damaged


IN_PLACE: dict[str, Callable[[Path], object]] = {
    "folder": lambda path: path.mkdir(),
    "pipe": lambda path: os.mkfifo(path),
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "huge": lambda path: (path.touch(), os.truncate(path, 2**40)),
    "unreadable": lambda path: path.symlink_to("/proc/self/mem"),
}


@pytest.mark.parametrize("name", ["mnist", "kmnist"])  # with and without known md5 sums
@pytest.mark.parametrize("kind", IN_PLACE)
def test_something_else_in_place_of_a_file(tmp_path: Path, write_idx: Write, kind: str, name: str) -> None:
    path = write_idx(tmp_path / name.upper() / "raw") / IDX_FILES[0]
    path.unlink()
    IN_PLACE[kind](path)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte: .*(is a folder|bytes|cannot|expected).* run again"):
        load_images(name, tmp_path)
