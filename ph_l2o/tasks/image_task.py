"""What tasks on real images have in common: data, splits, mini-batches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ph_l2o.checks import at_least, did_you_mean, one_of
from ph_l2o.data import DATASETS, ImageData, load_images, split_indices
from ph_l2o.keys import SPLITS, ProblemKeys
from ph_l2o.tasks.module import checked_init_scale
from ph_l2o.tasks.rows import RowProblem
from ph_l2o.tasks.task import Task
from ph_l2o.tasks.training_sets import TrainingSets, checked_label_noise, draw_training_sets

_CHUNK = 500  # images at once


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
        self._sets = task.training_sets(keys, arrays[1])
        trained = None if self._sets is None else self._sets.rows.shape[1]
        super().__init__(keys, factory, arrays, task.batch_size, trained=trained, device=device, dtype=dtype)
        self.scale_weights(task.init_scale)

    def batch(self, rows: Tensor, step: int) -> ImageBatch:
        images, labels = self._arrays
        if self._sets is None:
            answers = labels[rows]
        else:
            answers, rows = (x.gather(1, rows) for x in (self._sets.labels, self._sets.rows))
        pixels = images.index_select(0, rows.flatten()).to(self._dtype).mul_(1 / 255)
        return ImageBatch(pixels.view(*rows.shape, *images.shape[1:]), answers, self.seeds(step))

    def training_sample(self, most: int) -> Iterator[tuple[ImageBatch, int]]:
        """The first images of each problem's training set, all where it has no more than `most`."""
        for part in torch.arange(min(most, self._trained), device=self._device).split(_CHUNK):
            yield self.batch(part.expand(self.num_problems, -1), 0), len(part)


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
        train_images: Images of each problem's training set, >= 1: so many of the split's, drawn without replacement for
            each problem; None: all of the split.
        label_noise: Share of each problem's training labels, in [0, 1], that are replaced by a random other class, once
            for all steps. Test images keep their labels.
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
        train_images: int | None = None,
        label_noise: float = 0.0,
        data_dir: str | Path = "data",
    ):
        if dataset not in DATASETS:
            known = f"{', '.join(DATASETS)}, or registered by one of plugins=[…]{did_you_mean(dataset, DATASETS)}"
            raise ValueError(f"task.dataset={dataset}: must be one of {known}")
        if image_size is not None:
            at_least("task.image_size", image_size, 1, "pixels; null keeps those of the data")
        if train_images is not None:
            at_least("task.train_images", train_images, 1, "images of each problem's training set; null takes all")
        self.dataset, self.image_size = dataset, image_size
        self.train_images, self.label_noise = train_images, checked_label_noise(label_noise)
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
        for split in SPLITS if self.train_images is not None else ():
            self._check_train_images(split, len(self.images(split)[1]))

    @property
    def image_shape(self) -> tuple[int, ...]:
        """`(C, H, W)` of what the networks see."""
        channels, height, width = self._data.train_images.shape[1:]
        if self.image_size is None:
            return channels, height, width
        if height % self.image_size or width != height:
            raise ValueError(f"task.image_size={self.image_size}: must be a divisor of {height}, that of the data")
        return channels, self.image_size, self.image_size

    @property
    def num_classes(self) -> int:
        """Number of classes of the data set."""
        return self._data.num_classes

    def training_sets(self, keys: ProblemKeys, labels: Tensor) -> TrainingSets | None:
        """What each problem is trained on, of the split's labels `(rows,)`; None: all of it, as it is."""
        if self.train_images is None and not self.label_noise:
            return None
        self._check_train_images(keys.split, len(labels))
        return draw_training_sets(
            keys, labels, size=self.train_images, label_noise=self.label_noise, num_classes=self.num_classes
        )

    def _check_train_images(self, split: str, most: int) -> None:
        if self.train_images is not None and self.train_images > most:
            raise ValueError(
                f"task.train_images={self.train_images}: must be <= {most}, the images of the {split} split; "
                "null takes all"
            )

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
