import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torchvision
from idx_files import IDX_FILES, idx_bytes

from ph_l2o.data import registry


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both downloads fail at once, nothing is remembered from the last test, and its data sets are gone."""

    def no_network(*args: object, **options: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(torchvision.datasets.utils, "_get_redirect_url", no_network)
    monkeypatch.setattr(subprocess, "run", no_network)
    monkeypatch.setattr(registry, "_loaded", {})
    before = dict(registry.DATASETS)
    yield
    registry.DATASETS.clear()
    registry.DATASETS.update(before)


@pytest.fixture
def small_idx() -> dict[str, bytes]:
    """The four IDX files of a small data set: 12 training and 6 test images."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (n, 28, 28), dtype=np.uint8) for n in (12, 6)]
    labels = [rng.integers(0, 10, n, dtype=np.uint8) for n in (12, 6)]
    arrays = (images[0], labels[0], images[1], labels[1])
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
