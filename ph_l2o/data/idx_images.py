"""The four IDX files of MNIST and of the data sets made in its image."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from ph_l2o.data.idx import read_idx
from ph_l2o.data.images import ImageData
from ph_l2o.errors import DamagedFileError

TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"
TEST_IMAGES = "t10k-images-idx3-ubyte"
TEST_LABELS = "t10k-labels-idx1-ubyte"
IDX_FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)

NUM_CLASSES = 10
IMAGE_SHAPE = (28, 28)

MNIST_MD5 = {
    TRAIN_IMAGES: "6bbc9ace898e44ae57da46a324031adb",
    TRAIN_LABELS: "a25bea736e30d166cdddb491f175f624",
    TEST_IMAGES: "2646ac647ad5339dbf082846283269ea",
    TEST_LABELS: "27ae3e4e09519cfbb04c329615203637",
}


def read_idx_images(folder: Path, md5s: Mapping[str, str] | None = None) -> ImageData:
    """Reads and checks the four IDX files in a folder; each may be plain or ``.gz``.

    Args:
        folder: Where the files are.
        md5s: If given, what each uncompressed file must hash to.

    Returns:
        The images as ``(N, 1, 28, 28)`` and their labels.

    Raises:
        DamagedFileError: A file is missing or not what it should be.
    """
    md5s = md5s or {}
    train = _read_half(folder, TRAIN_IMAGES, TRAIN_LABELS, md5s)
    test = _read_half(folder, TEST_IMAGES, TEST_LABELS, md5s)
    return ImageData(*train, *test, num_classes=NUM_CLASSES)


def _read_half(
    folder: Path, images_name: str, labels_name: str, md5s: Mapping[str, str]
) -> tuple[torch.Tensor, torch.Tensor]:
    images_path = _plain_or_compressed(folder / images_name)
    labels_path = _plain_or_compressed(folder / labels_name)
    images = read_idx(images_path, ndim=3, md5=md5s.get(images_name))
    labels = read_idx(labels_path, ndim=1, md5=md5s.get(labels_name))
    if images.shape[1:] != IMAGE_SHAPE:
        raise DamagedFileError(images_path, f"images of {images.shape[1:]}, expected {IMAGE_SHAPE}")
    if len(images) == 0:
        raise DamagedFileError(images_path, "holds no image")
    if len(labels) != len(images):
        raise DamagedFileError(labels_path, f"{len(labels)} labels for {len(images)} images")
    if labels.max() >= NUM_CLASSES:
        raise DamagedFileError(labels_path, f"label {labels.max()}, expected 0 to {NUM_CLASSES - 1}")
    return torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels.astype(np.int64))


def _plain_or_compressed(path: Path) -> Path:
    compressed = path.with_name(path.name + ".gz")
    return compressed if compressed.exists() and not path.exists() else path
