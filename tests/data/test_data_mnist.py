"""The real MNIST."""

import hashlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ph_l2o.data import DATASETS, DataError, load_images

MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def test_content(mnist_root: Path) -> None:
    data = load_images("mnist", mnist_root)
    assert data.train_images.shape == (60_000, 1, 28, 28)
    assert data.test_images.shape == (10_000, 1, 28, 28)
    assert data.train_images.dtype == data.test_images.dtype == torch.uint8
    assert data.train_labels.dtype == data.test_labels.dtype == torch.int64
    assert data.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert data.test_labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert data.num_classes == 10


def test_files_are_canonical_and_alone(mnist_root: Path) -> None:
    folder = mnist_root / "MNIST" / "raw"
    for name, md5 in MD5.items():
        assert hashlib.md5((folder / name).read_bytes()).hexdigest() == md5
    assert not [path for path in mnist_root.iterdir() if path.name.startswith(".ph_l2o")]


def test_torchvision_reads_the_same(mnist_root: Path) -> None:
    from torchvision.datasets import MNIST

    ours, theirs = load_images("mnist", mnist_root), MNIST(str(mnist_root), train=True)
    assert torch.equal(ours.train_images[:, 0], theirs.data)
    assert torch.equal(ours.train_labels, theirs.targets)
    assert torch.equal(ours.test_images[:, 0], MNIST(str(mnist_root), train=False).data)


def test_loading_is_quick_and_cached(mnist_root: Path) -> None:
    start = time.perf_counter()
    first = load_images("mnist", mnist_root)
    assert time.perf_counter() - start < 1.0
    assert load_images("mnist", str(mnist_root), download=False) is first


@pytest.mark.parametrize("name", MD5)
def test_one_changed_byte_is_found(mnist_root: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "MNIST" / "raw"
    shutil.copytree(mnist_root / "MNIST" / "raw", folder)
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: content has md5 .*, expected {MD5[name]}; delete it"):
        load_images("mnist", tmp_path)
    assert (folder / name).read_bytes() == content


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"name='imagenet': must be one of mnist, fashion_mnist, cifar10"):
        load_images("imagenet")
    assert DATASETS == ("mnist", "fashion_mnist", "cifar10")


def test_import_leaves_torchvision_and_rich_alone() -> None:
    code = "import sys, ph_l2o.data; sys.exit(any(m in sys.modules for m in ('torchvision', 'rich')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
