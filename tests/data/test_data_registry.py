"""A data set is one function; what it returns is checked."""

import re
from pathlib import Path

import pytest
import torch

from ph_l2o.data import DATASETS, DataError, ImageData, load_images, register_dataset

IMAGES, LABELS = torch.zeros(12, 1, 4, 4, dtype=torch.uint8), torch.arange(12, dtype=torch.uint8) % 3
GOOD = ImageData(IMAGES, LABELS, IMAGES[:6], LABELS[:6], num_classes=3)


def test_a_function_is_a_data_set(tmp_path: Path) -> None:
    roots: list[Path] = []

    @register_dataset("own")
    def read(root: Path) -> ImageData:
        roots.append(root)
        return GOOD

    data = load_images("own", tmp_path)
    assert load_images("own", tmp_path) is data and roots == [tmp_path]
    assert data.train_labels.dtype == torch.int64 and data.train_labels.tolist() == LABELS.tolist()

    @register_dataset("own")  # as when a cell of a notebook runs twice
    def read_again(root: Path) -> ImageData:
        return GOOD._replace(train_images=IMAGES + 1)

    assert load_images("own", tmp_path).train_images.max() == 1


def test_files_and_sources_of_a_users_own(tmp_path: Path) -> None:
    def fetch(folder: Path) -> None:
        (folder / "own").mkdir()
        torch.save(tuple(GOOD), folder / "own" / "images.pt")
        (folder / "own" / "more").touch()

    @register_dataset("own", files=["own/images.pt"], sources={"a generator": fetch})
    def read(root: Path) -> ImageData:
        return ImageData(*torch.load(root / "own" / "images.pt"))

    with pytest.raises(DataError, match=r"own: images\.pt missing in .*own \(downloads are not allowed\); put good"):
        load_images("own", tmp_path / "root", download=False)
    assert not (tmp_path / "root").exists()
    assert torch.equal(load_images("own", tmp_path / "root").test_images, GOOD.test_images)
    assert [path.name for path in (tmp_path / "root" / "own").iterdir()] == ["images.pt"]


@pytest.mark.parametrize("name", ["mnist", "of another module"])
def test_a_name_that_is_taken(name: str) -> None:
    def read(root: Path) -> ImageData:
        return GOOD

    register_dataset("of another module")(read)
    read.__module__ = "elsewhere"
    before = dict(DATASETS)
    with pytest.raises(ValueError, match=f"data set '{name}' of {__name__}: .* has one of this name; choose another"):

        @register_dataset(name)
        def other(root: Path) -> ImageData:
            return GOOD

    assert before == DATASETS


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"name='mnits': must be one of .*mnist.*; did you mean mnist"):
        load_images("mnits")
    assert {"mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100"} <= set(DATASETS)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"train_images": IMAGES.float()}, "train_images: torch.float32 of shape (12, 1, 4, 4), expected uint8 (N, C"),
        ({"train_images": IMAGES[:0]}, "train_images: torch.uint8 of shape (0, 1, 4, 4), expected uint8 (N, C, H, W)"),
        ({"test_images": IMAGES[:, 0]}, "train_images of shape (12, 1, 4, 4), test_images (12, 4, 4)"),
        ({"test_labels": LABELS}, "test_labels: torch.uint8 of shape (12,) for 6 images"),
        ({"train_labels": LABELS.float()}, "train_labels: torch.float32 of shape (12,) for 12 images"),
        ({"num_classes": 2}, "train_labels: 0 to 2, expected 0 to 1"),
        ({"train_labels": LABELS.long() - 1}, "train_labels: -1 to 1, expected 0 to 2"),
    ],
)
def test_what_it_returns_is_checked(tmp_path: Path, change: dict, problem: str) -> None:
    @register_dataset("own")
    def read(root: Path) -> ImageData:
        return GOOD._replace(**change)

    with pytest.raises(DataError, match=re.escape(f"data set own of {__name__}: {problem}")):
        load_images("own", tmp_path)
