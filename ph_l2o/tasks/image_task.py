"""What tasks on real images have in common: data, splits, mini-batches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ph_l2o.checks import at_least, did_you_mean, one_of
from ph_l2o.data import DATASETS, ImageData, load_images, split_indices
from ph_l2o.keys import ProblemKeys
from ph_l2o.tasks.module import checked_init_scale
from ph_l2o.tasks.rows import RowProblem
from ph_l2o.tasks.task import Task


class ImageBatch(NamedTuple):
    """A mini-batch for each problem.

    Attributes:
        inputs: Pixels in [0, 1], `(B, batch, C, H, W)`.
        labels: `(B, batch)`.
        seeds: Of what each problem's module draws itself; empty where it draws nothing.
    """

    inputs: Tensor
    labels: Tensor
    seeds: tuple[int, ...]


class ImageTaskProblem(RowProblem):
    """B networks with mini-batches of their own; a subclass adds the loss."""

    def __init__(
        self,
        task: ImageTask,
        keys: ProblemKeys,
        factory: Callable[[], nn.Module],
        *,
        device: torch.device | str,
        dtype: torch.dtype,
    ):
        arrays = task.images(keys.split, device)
        super().__init__(keys, factory, arrays, task.batch_size, device=device, dtype=dtype)
        self.scale_weights(task.init_scale)

    def batch(self, rows: Tensor, step: int) -> ImageBatch:
        images, labels = self._arrays
        pixels = images.index_select(0, rows.flatten()).to(self._dtype).mul_(1 / 255)
        return ImageBatch(pixels.view(*rows.shape, *images.shape[1:]), labels[rows], self.seeds(step))


class ImageTask(Task):
    """Networks on the images of a data set; a subclass says which networks and which loss.

    The training images are split between meta-training, validation and test (`ph_l2o.data.split_indices`); the data
    set's own test images are never trained on.

    Args:
        dataset: A name of `ph_l2o.data.DATASETS`.
        batch_size: Images of a mini-batch, >= 1.
        split: `default` (a third, a sixth and half of the training images), or `study` (halves; validation shares
            the training half).
        image_size: Width and height that the images are averaged down to, a divisor of their own; None keeps them.
        init_scale: Factor of the initial weights, tensors with two axes or more; a number, or (low, high) for a
            log-uniform draw for each problem; > 0.
        data_dir: Folder of the data sets.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        dataset: str,
        *,
        batch_size: int,
        split: str = "default",
        image_size: int | None = None,
        init_scale: float | Sequence[float] = 1.0,
        data_dir: str | Path = "data",
    ):
        if dataset not in DATASETS:
            known = f"{', '.join(DATASETS)}, or registered by one of plugins=[…]{did_you_mean(dataset, DATASETS)}"
            raise ValueError(f"task.dataset={dataset}: must be one of {known}")
        if image_size is not None:
            at_least("task.image_size", image_size, 1, "pixels; null keeps those of the data")
        self.dataset, self.image_size = dataset, image_size
        self.split = one_of("task.split", split, ("default", "study"))
        self.batch_size = at_least("task.batch_size", batch_size, 1, "images of a mini-batch")
        self.init_scale = checked_init_scale(init_scale)
        self._data_dir = str(data_dir)

    @cached_property
    def _data(self) -> ImageData:
        return load_images(self.dataset, self._data_dir)

    def prepare(self) -> None:
        """Find, fetch and verify the data."""
        _ = self.image_shape

    @property
    def image_shape(self) -> tuple[int, ...]:
        """`(C, H, W)` of what the networks see."""
        channels, height, width = self._data.train_images.shape[1:]
        if self.image_size is None:
            return channels, height, width
        if height % self.image_size or width != height:
            raise ValueError(f"task.image_size={self.image_size}: must be a divisor of {height}, that of the data")
        return channels, self.image_size, self.image_size

    def images(self, split: str, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Images `(N, C, H, W)` in uint8 and labels `(N,)` of a split, or of `held_out`, on the device."""
        data, size = self._data, None if self.image_size is None else self.image_shape[1]
        if split == "held_out":
            return _on_device(data.test_images, data.test_labels, None, "", size, torch.device(device))
        return _on_device(data.train_images, data.train_labels, split, self.split, size, torch.device(device))


@functools.lru_cache(maxsize=64)
def _on_device(
    images: Tensor, labels: Tensor, split: str | None, scheme: str, size: int | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Part of a data set, shared by all tasks on it; smaller images in whole grey values."""
    if split is not None:
        rows = split_indices(len(images), split, scheme)  # type: ignore[arg-type]
        images, labels = images[rows], labels[rows]
    if size is not None and size < images.shape[-1]:
        small = [F.avg_pool2d(part.float(), images.shape[-1] // size).round() for part in images.split(10_000)]
        images = torch.cat([part.to(torch.uint8) for part in small])
    return images.to(device), labels.to(device)
