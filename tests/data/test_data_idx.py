"""Files in the IDX format: Fashion-MNIST's from small ones in the real format, and damaged ones."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ph_l2o.data import DataError, load_images
from ph_l2o.data.idx import idx_bytes, read_idx
from ph_l2o.data.idx_images import IDX_FILES

FOLDER = Path("FashionMNIST") / "raw"
Write = Callable[[Path], Path]


def test_fashion_mnist(tmp_path: Path, write_idx: Write, small_idx: dict[str, bytes]) -> None:
    write_idx(tmp_path / FOLDER)
    data = load_images("fashion_mnist", tmp_path)
    assert data.train_images.shape == (12, 1, 28, 28)
    assert data.test_images.shape == (6, 1, 28, 28)
    assert data.train_images.numpy().tobytes() == small_idx[IDX_FILES[0]][16:]
    assert data.test_labels.tolist() == list(small_idx[IDX_FILES[3]][8:])


def test_compressed_files_are_read_too(tmp_path: Path, write_idx: Write) -> None:
    folder = write_idx(tmp_path / "a" / FOLDER)
    plain = load_images("fashion_mnist", tmp_path / "a")
    (tmp_path / "b" / FOLDER).mkdir(parents=True)
    for path in folder.iterdir():
        (tmp_path / "b" / FOLDER / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    compressed = load_images("fashion_mnist", tmp_path / "b", download=False)
    assert all(np.array_equal(a, b) for a, b in zip(plain, compressed, strict=True))


def test_small_mnist_is_foreign(tmp_path: Path, write_idx: Write) -> None:
    write_idx(tmp_path / "MNIST" / "raw")
    with pytest.raises(DataError, match="content has md5"):
        load_images("mnist", tmp_path)


DAMAGES: dict[str, tuple[int, Callable[[bytes], bytes], str]] = {
    "empty": (0, lambda content: b"", "0 bytes are too few for an IDX header of 16"),
    "truncated": (0, lambda content: content[:-1], "9423 bytes, but sizes 12x28x28 need 9424"),
    "longer": (1, lambda content: content + b"\0", "21 bytes, but sizes 12 need 20"),
    "foreign": (2, lambda content: b"<!DOCTYPE html>" * 9, "not IDX: magic number 0x3c21444f"),
    "swapped": (0, lambda content: idx_bytes(np.zeros(12, np.uint8)).ljust(16), "magic number 0x00000801"),
    "shape": (0, lambda c: idx_bytes(np.zeros((12, 32, 32), np.uint8)), r"images of \(32, 32\), expected"),
    "no images": (0, lambda content: idx_bytes(np.zeros((0, 28, 28), np.uint8)), "holds no image"),
    "count": (3, lambda content: idx_bytes(np.zeros(5, np.uint8)), "5 labels for 6 images"),
    "label": (1, lambda content: content[:-1] + b"\n", "label 10, expected 0 to 9"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_file(tmp_path: Path, write_idx: Write, kind: str) -> None:
    index, damage, problem = DAMAGES[kind]
    path = write_idx(tmp_path / FOLDER) / IDX_FILES[index]
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=problem) as caught:
        load_images("fashion_mnist", tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and message.endswith("run again") and "\n" not in message
    assert path.read_bytes() == damaged


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(b"x" * 999)[:-9], b"\x1f\x8b\x08\0" + b"\xff" * 50],
    ids=["no gzip", "cut", "no deflate"],  # compressed content holds the time, and test names must not
)
def test_damaged_compressed_file(tmp_path: Path, write_idx: Write, content: bytes) -> None:
    folder = write_idx(tmp_path / FOLDER)
    (folder / IDX_FILES[0]).unlink()
    (folder / f"{IDX_FILES[0]}.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: cannot be read"):
        load_images("fashion_mnist", tmp_path)


def test_folder_in_place_of_a_file(tmp_path: Path, write_idx: Write) -> None:
    folder = write_idx(tmp_path / FOLDER)
    (folder / IDX_FILES[0]).unlink()
    (folder / IDX_FILES[0]).mkdir()
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\)"):
        load_images("fashion_mnist", tmp_path)


@given(shape=st.lists(st.integers(0, 4), min_size=1, max_size=3), data=st.data())
def test_idx_round_trip_and_any_cut(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "array"
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    content = idx_bytes(array)
    path.write_bytes(content)
    assert np.array_equal(read_idx(path, ndim=len(shape)), array)
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(DataError):
        read_idx(path, ndim=len(shape))


@given(header=st.binary(max_size=20))
def test_any_header(tmp_path_factory: pytest.TempPathFactory, header: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "header"
    path.write_bytes(struct.pack(">I", 0x803) + header)
    try:
        array = read_idx(path, ndim=3)
    except DataError:
        return
    assert array.size == len(header) - 12


def test_only_bytes_are_written() -> None:
    with pytest.raises(TypeError, match="must be uint8"):
        idx_bytes(np.zeros(3))
