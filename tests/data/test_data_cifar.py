"""CIFAR from small batches in the published format, which Python 2 wrote; no unknown file is unpickled."""

import hashlib
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from ph_l2o.data import DataError, load_images
from ph_l2o.errors import DamagedFileError


def text2(text: str) -> bytes:
    return b"U" + bytes([len(text)]) + text.encode()


def python2_batch(images: np.ndarray, labels: list[int], key: str) -> bytes:
    """A batch pickled as Python 2 and numpy 1 did, opcode by opcode."""
    raw = images.tobytes()
    shape = b"".join(b"J" + struct.pack("<i", size) for size in images.shape)
    dtype = b"cnumpy\ndtype\n" + text2("u1") + b"K\x00K\x01\x87R(K\x03" + text2("|") + b"NNN"
    dtype += b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text2("b") + b"\x87R"
    array += b"(K\x01" + shape + b"\x86" + dtype + b"\x89" + b"T" + struct.pack("<i", len(raw)) + raw + b"tb"
    entries = text2(key) + b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + entries + text2("data") + array + b"u."


def make_batch(seed: int) -> tuple[np.ndarray, list[int]]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (4, 3072), dtype=np.uint8), rng.integers(0, 10, 4).tolist()


Make = Callable[[str], Path]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Writes a small data set where `torchvision.datasets.<class_name>` is, and makes its md5 sums the known ones."""

    def write(class_name: str) -> Path:
        cls = getattr(datasets, class_name)
        folder = tmp_path / cls.base_folder
        folder.mkdir()
        key = {"CIFAR10": "labels", "CIFAR100": "fine_labels"}[class_name]
        names = [name for name, _ in (*cls.train_list, *cls.test_list)]
        contents = {name: python2_batch(*make_batch(seed), key) for seed, name in enumerate(names)}
        contents[cls.meta["filename"]] = pickle.dumps({cls.meta["key"]: [str(k) for k in range(10)]})
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        md5 = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
        monkeypatch.setattr(cls, "train_list", [[name, md5[name]] for name, _ in cls.train_list])
        monkeypatch.setattr(cls, "test_list", [[name, md5[name]] for name, _ in cls.test_list])
        monkeypatch.setattr(cls, "meta", cls.meta | {"md5": md5[cls.meta["filename"]]})
        return folder

    return write


@pytest.mark.parametrize(("name", "class_name", "count"), [("cifar10", "CIFAR10", 5), ("cifar100", "CIFAR100", 1)])
def test_published_format(make: Make, name: str, class_name: str, count: int) -> None:
    data = load_images(name, make(class_name).parent, download=False)
    *train, (test_images, test_labels) = [make_batch(seed) for seed in range(count + 1)]
    train_images = np.concatenate([images for images, _ in train]).reshape(-1, 3, 32, 32)
    assert np.array_equal(data.train_images.numpy(), train_images)
    assert np.array_equal(data.test_images.numpy(), test_images.reshape(-1, 3, 32, 32))
    assert data.train_labels.tolist() == [label for _, labels in train for label in labels]
    assert data.test_labels.tolist() == test_labels
    assert data.train_images.is_contiguous() and data.num_classes == 10


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("file", ["data_batch_3", "test_batch", "batches.meta"])
@pytest.mark.parametrize("kind", ["code", "truncated", "foreign", "empty", "folder"])
def test_damaged_files_are_never_opened(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, kind: str
) -> None:
    path, target = make("CIFAR10") / file, tmp_path / "made by the payload"
    content = {"code": pickle.dumps(Payload(target)), "truncated": path.read_bytes()[:-1], "foreign": b"<html>"}
    if kind == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(content.get(kind, b""))
    monkeypatch.setattr(pickle, "load", lambda *args, **options: pytest.fail("unpickled"))
    with pytest.raises(DamagedFileError, match="cannot be read" if kind == "folder" else "content has md5") as caught:
        load_images("cifar10", tmp_path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert not target.exists() and path.exists()


def test_missing_batch_offline(make: Make, tmp_path: Path) -> None:
    (make("CIFAR10") / "data_batch_2").unlink()
    with pytest.raises(DataError, match=r"data set cifar10: data_batch_2 missing in .*no network in this test"):
        load_images("cifar10", tmp_path)
