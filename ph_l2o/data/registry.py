"""The data sets by name, and how one is added; each is read once per process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ph_l2o.checks import did_you_mean
from ph_l2o.data.fetch import Fetch, fetch_missing
from ph_l2o.errors import DamagedFileError, DataError


class ImageData(NamedTuple):
    """Images and labels of one data set, on the CPU.

    The tensors are shared by all callers in the process: read them, never write to them.

    Attributes:
        train_images: `(N, C, H, W)` uint8, 0 to 255.
        train_labels: `(N,)` whole numbers in `[0, num_classes)`; int64 in what `load_images` returns.
        test_images: `(M, C, H, W)` uint8.
        test_labels: `(M,)`, like `train_labels`.
        num_classes: Number of classes.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    num_classes: int


Read = Callable[[Path], ImageData]


@dataclass(frozen=True, eq=False)
class Dataset:
    """How a data set is read, which files that takes, and where they come from; see `register_dataset`."""

    name: str
    read: Read
    files: tuple[str, ...]
    sources: Mapping[str, Fetch]


DATASETS: dict[str, Dataset] = {}

_loaded: dict[tuple[Dataset, Path], ImageData] = {}
_loading = threading.Lock()


def register_dataset(
    name: str, *, files: Sequence[str] = (), sources: Mapping[str, Fetch] | None = None
) -> Callable[[Read], Read]:
    """Makes the decorated function, from the data root to `ImageData`, the data set `name`.

    Args:
        name: What `task.dataset` and `load_images` call it.
        files: Paths below the data root that must be there before the function is called.
        sources: Functions that fetch the files if one is missing, by what messages call them, tried in this order.
            Each fills a folder that is laid out like the data root; the files are put in place once the decorated
            function has read them there.

    Raises:
        ValueError: The name belongs to another data set.

    >>> @register_dataset("noise")
    ... def noise(root: Path) -> ImageData:
    ...     images, labels = torch.randint(256, (60, 1, 8, 8), dtype=torch.uint8), torch.arange(60) % 10
    ...     return ImageData(images[:50], labels[:50], images[50:], labels[50:], num_classes=10)
    >>> load_images("noise").train_images.shape
    torch.Size([50, 1, 8, 8])
    """

    def register(read: Read) -> Read:
        owner = DATASETS[name].read.__module__ if name in DATASETS else None
        if owner and (owner != read.__module__ or owner.startswith("ph_l2o.")):  # a notebook's cell may run twice
            raise ValueError(f"data set {name!r} of {read.__module__}: {owner} has one of this name; choose another")
        DATASETS[name] = Dataset(name, read, tuple(files), sources or {})
        return read

    return register


def load_images(name: str, root: str | Path = "data", *, download: bool = True) -> ImageData:
    """Loads a data set, checked; what is missing below `root` is fetched.

    MNIST and CIFAR lie in torchvision's layout (`MNIST/raw`, `cifar-10-batches-py`, …). A damaged file is an error; it
    is never replaced. Processes that start at once fetch once. The same tensors come back at the next call.

    Args:
        name: One of `DATASETS`.
        root: The data root; it is made if missing.
        download: Whether missing files may be fetched.

    Raises:
        ValueError: `name` is none of `DATASETS`.
        DataError: A file is damaged, no source worked, or the root cannot be written.
    """
    if name not in DATASETS:
        raise ValueError(f"name={name!r}: must be one of {', '.join(DATASETS)}{did_you_mean(name, DATASETS)}")
    dataset, root = DATASETS[name], Path(root).expanduser().resolve()
    with _loading:
        if (dataset, root) not in _loaded:
            sources = dataset.sources if download else {}
            fetch_missing(name, dataset.files, sources, root, check=lambda folder: _checked(dataset, folder))
            _loaded[dataset, root] = _checked(dataset, root)
        return _loaded[dataset, root]


def _checked(dataset: Dataset, root: Path) -> ImageData:
    data = dataset.read(root)
    problem = _problem(data)
    if problem and dataset.files:
        raise DamagedFileError((root / dataset.files[0]).parent, problem)
    if problem:
        raise DataError(f"data set {dataset.name} of {dataset.read.__module__}: {problem}")
    return data._replace(train_labels=data.train_labels.long(), test_labels=data.test_labels.long())


def _problem(data: ImageData) -> str | None:
    if data.train_images.shape[1:] != data.test_images.shape[1:]:
        return f"train_images of shape {tuple(data.train_images.shape)}, test_images {tuple(data.test_images.shape)}"
    halves = {"train": (data.train_images, data.train_labels), "test": (data.test_images, data.test_labels)}
    for half, (images, labels) in halves.items():
        if images.dtype != torch.uint8 or images.dim() != 4 or not images.numel():
            return f"{half}_images: {images.dtype} of shape {tuple(images.shape)}, expected uint8 (N, C, H, W)"
        if labels.is_floating_point() or labels.shape != images.shape[:1]:
            return f"{half}_labels: {labels.dtype} of shape {tuple(labels.shape)} for {len(images)} images"
        if not 0 <= labels.min() <= labels.max() < data.num_classes:
            low, high = int(labels.min()), int(labels.max())
            return f"{half}_labels: {low} to {high}, expected 0 to {data.num_classes - 1}"
    return None
