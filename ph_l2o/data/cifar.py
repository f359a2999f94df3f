"""The pickled batches of CIFAR-10 (the "python version")."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ph_l2o.data.images import ImageData
from ph_l2o.data.safe_pickle import load_arrays
from ph_l2o.errors import DamagedFileError

TRAIN_FILES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_FILES = ("test_batch",)
CIFAR_FILES = TRAIN_FILES + TEST_FILES

NUM_CLASSES = 10
IMAGE_SHAPE = (3, 32, 32)
_IMAGE_SIZE = 3 * 32 * 32


def read_cifar10(folder: Path) -> ImageData:
    """Reads and checks the six batches in a folder.

    Args:
        folder: Where the batches are.

    Returns:
        The images as ``(N, 3, 32, 32)`` and their labels.

    Raises:
        DamagedFileError: A batch is missing, or not what it should be, or asks to run code.
    """
    train = _join([_read_batch(folder / name) for name in TRAIN_FILES])
    test = _join([_read_batch(folder / name) for name in TEST_FILES])
    return ImageData(*train, *test, num_classes=NUM_CLASSES)


def _join(batches: list[tuple[np.ndarray, np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor]:
    images = np.concatenate([images for images, _ in batches]).reshape(-1, *IMAGE_SHAPE)
    labels = np.concatenate([labels for _, labels in batches])
    return torch.from_numpy(images), torch.from_numpy(labels)


def _read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with path.open("rb") as stream:
            batch = load_arrays(stream)
    except (OSError, pickle.UnpicklingError) as error:
        raise DamagedFileError(path, f"cannot be read ({getattr(error, 'strerror', None) or error})") from error
    images, labels = _entry(path, batch, "data"), _entry(path, batch, "labels")
    if not (isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 2):
        raise DamagedFileError(path, "its 'data' is not a uint8 array of one row per image")
    if images.shape[1] != _IMAGE_SIZE:
        raise DamagedFileError(path, f"rows of {images.shape[1]} bytes, expected {_IMAGE_SIZE} (3x32x32)")
    if len(images) == 0:
        raise DamagedFileError(path, "holds no image")
    return images, _checked_labels(path, labels, num_images=len(images))


def _entry(path: Path, batch: Any, key: str) -> Any:
    entries = batch if isinstance(batch, dict) else {}
    if key in entries:
        return entries[key]
    if key.encode() in entries:  # written by Python 2, as the published files are
        return entries[key.encode()]
    raise DamagedFileError(path, f"not a batch of CIFAR-10: no entry {key!r}")


def _checked_labels(path: Path, labels: Any, *, num_images: int) -> np.ndarray:
    is_list = isinstance(labels, list) and all(type(label) is int for label in labels)
    if not is_list and not (isinstance(labels, np.ndarray) and labels.dtype.kind in "iu"):
        raise DamagedFileError(path, "its 'labels' are not integers")
    if np.shape(labels) != (num_images,):
        raise DamagedFileError(path, f"labels of shape {np.shape(labels)} for {num_images} images")
    if not 0 <= min(labels) <= max(labels) < NUM_CLASSES:
        raise DamagedFileError(path, f"labels {min(labels)} to {max(labels)}, expected 0 to {NUM_CLASSES - 1}")
    return np.asarray(labels, dtype=np.int64)
