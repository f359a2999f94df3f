"""CIFAR-10 from small batches in the published format, which Python 2 wrote."""

import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from ph_l2o.data import DataError, datasets, load_images

NAMES = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]


def text2(text: str) -> bytes:
    return b"U" + bytes([len(text)]) + text.encode()


def python2_batch(images: np.ndarray, labels: list[int]) -> bytes:
    """A batch pickled as Python 2 and numpy 1 did, opcode by opcode."""
    raw = images.tobytes()
    shape = b"".join(b"J" + struct.pack("<i", size) for size in images.shape)
    dtype = b"cnumpy\ndtype\n" + text2("u1") + b"K\x00K\x01\x87R(K\x03" + text2("|") + b"NNN"
    dtype += b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text2("b") + b"\x87R"
    array += b"(K\x01" + shape + b"\x86" + dtype + b"\x89" + b"T" + struct.pack("<i", len(raw)) + raw + b"tb"
    entries = text2("batch_label") + text2("training batch 1 of 5")
    entries += text2("labels") + b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    entries += text2("data") + array
    return b"\x80\x02}(" + entries + b"u."


def make_batch(seed: int) -> tuple[np.ndarray, list[int]]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (4, 3072), dtype=np.uint8), rng.integers(0, 10, 4).tolist()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "cifar-10-batches-py"
    path.mkdir()
    for seed, name in enumerate(NAMES):
        (path / name).write_bytes(python2_batch(*make_batch(seed)))
    return path


def test_published_format(folder: Path) -> None:
    data = load_images("cifar10", folder.parent, download=False)
    assert data.train_images.shape == (20, 3, 32, 32)
    assert data.test_images.shape == (4, 3, 32, 32)
    expected = [make_batch(seed) for seed in range(6)]
    train_images = np.concatenate([images for images, _ in expected[:5]]).reshape(-1, 3, 32, 32)
    assert np.array_equal(data.train_images.numpy(), train_images)
    assert data.train_labels.tolist() == [label for _, labels in expected[:5] for label in labels]
    assert data.test_labels.tolist() == expected[5][1]


def test_download_brings_the_names_of_the_classes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, root: Path, say: object) -> None:
        target = shutil.copytree(folder, root / folder.name)
        (target / "batches.meta").write_bytes(b"names")
        (target / "readme.html").touch()

    monkeypatch.setattr(datasets, "download_with_torchvision", download)
    root = folder.parent / "root"
    load_images("cifar10", root)
    assert sorted(path.name for path in (root / folder.name).iterdir()) == sorted([*NAMES, "batches.meta"])


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("fortran", [False, True])
def test_batches_of_python_3(folder: Path, protocol: int, fortran: bool) -> None:
    images, labels = make_batch(7)
    images = np.asfortranarray(images) if fortran else images
    batch = {b"data": images, b"labels": np.array(labels, ">i4")}
    (folder / "test_batch").write_bytes(pickle.dumps(batch, protocol=protocol))
    data = load_images("cifar10", folder.parent)
    assert np.array_equal(data.test_images.numpy().reshape(4, -1), images)
    assert data.test_labels.tolist() == labels


class Payload:
    """Makes a folder when it is unpickled by an unrestricted reader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        import os

        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
def test_code_is_refused(folder: Path, tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "made by the payload"
    images, labels = make_batch(0)
    batch = {"data": images, "labels": labels, "more": Payload(target)}
    (folder / "data_batch_3").write_bytes(pickle.dumps(batch, protocol=protocol))
    with pytest.raises(DataError, match=r"data_batch_3: .*refused: the pickle asks for (posix|nt)\.mkdir"):
        load_images("cifar10", folder.parent)
    assert not target.exists()


IMAGES, LABELS = make_batch(0)
DAMAGES = {
    "no batch": ([1, 2], "not a batch of CIFAR-10: no entry 'data'"),
    "no labels": ({"data": IMAGES}, "no entry 'labels'"),
    "list": ({"data": IMAGES.tolist(), "labels": LABELS}, "'data' is not a uint8 array"),
    "floats": ({"data": IMAGES * 1.0, "labels": LABELS}, "'data' is not a uint8 array"),
    "objects": ({"data": IMAGES.astype(object), "labels": LABELS}, "refused: .* array of type 'O8'"),
    "rows": ({"data": IMAGES[:, :784], "labels": LABELS}, "rows of 784 bytes, expected 3072"),
    "no image": ({"data": IMAGES[:0], "labels": []}, "holds no image"),
    "text": ({"data": IMAGES, "labels": ["cat"] * 4}, "'labels' are not integers"),
    "count": ({"data": IMAGES, "labels": LABELS[1:]}, r"labels of shape \(3,\) for 4 images"),
    "high": ({"data": IMAGES, "labels": [0, 1, 2, 10]}, "labels 0 to 10, expected 0 to 9"),
    "low": ({"data": IMAGES, "labels": [0, 1, 2, -1]}, "labels -1 to 2, expected 0 to 9"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_batch(folder: Path, kind: str) -> None:
    batch, problem = DAMAGES[kind]
    (folder / "data_batch_2").write_bytes(pickle.dumps(batch, protocol=4))
    with pytest.raises(DataError, match=problem) as caught:
        load_images("cifar10", folder.parent)
    message = str(caught.value)
    assert message.startswith(f"{folder / 'data_batch_2'}: ") and "\n" not in message


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.01, 0.02, 0.5, 0.999])
def test_truncated_batch(folder: Path, fraction: float) -> None:
    path = folder / "test_batch"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(DataError, match="test_batch: cannot be read"):
        load_images("cifar10", folder.parent)


def test_foreign_file(folder: Path) -> None:
    (folder / "test_batch").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(DataError, match="test_batch: cannot be read"):
        load_images("cifar10", folder.parent)
