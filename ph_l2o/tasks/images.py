"""Classification of real images by small networks."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ph_l2o.data import DATASETS, ImageData, load_images, split_indices
from ph_l2o.params import Params
from ph_l2o.random import ProblemKeys, Purpose, integers
from ph_l2o.tasks.base import Buffers, Task
from ph_l2o.tasks.batched import NORMS
from ph_l2o.tasks.describe import described
from ph_l2o.tasks.logistic import negative_log_likelihood
from ph_l2o.tasks.mlp import MLP, MixedActivation, checked_activations, checked_sizes
from ph_l2o.tasks.module import ModuleProblem, checked_init_scale

_FINAL = 2**62  # first number of the seeds for final batches, beyond those of all inner steps
_TEST_ELEMENTS = 2**23  # input numbers of a chunk of test images, over all problems: 32 MiB in float32


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


class ImageTask(Task):
    """Networks on the images of a data set; a subclass says which networks and which loss.

    The training images are split between meta-training, validation and test (`ph_l2o.data.split_indices`); the data
    set's own test images are never trained on.

    Args:
        dataset: `mnist`, `fashion_mnist` or `cifar10`.
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
        split: str,
        image_size: int | None,
        init_scale: float | Sequence[float],
        data_dir: str | Path,
    ):
        if dataset not in DATASETS:
            raise ValueError(f"task.dataset={dataset}: must be one of {', '.join(DATASETS)}")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"task.batch_size={batch_size}: must be >= 1 (whole number of images of a mini-batch)")
        if split not in ("default", "study"):
            raise ValueError(f"task.split={split}: must be default or study")
        if image_size is not None and (not isinstance(image_size, int) or image_size < 1):
            raise ValueError(f"task.image_size={image_size}: must be a whole number >= 1, or null for that of the data")
        self.dataset, self.batch_size, self.split, self.image_size = dataset, batch_size, split, image_size
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


class ImageClassification(ImageTask):
    """Train a network on images: mini-batches, negative log-likelihood, pixels in [0, 1].

    The data set's own test images give `test_loss` and `accuracy`.

    Args:
        dataset: `mnist`, `fashion_mnist` or `cifar10`.
        hidden_sizes: Units of the MLP's hidden layers, each >= 1.
        activation: Of the MLP: a name of `ph_l2o.tasks.ACTIVATIONS`, or several that the problems take in turn.
        norm: Of the MLP: `layer` or `batch` before each activation, or None.
        batch_size: As for `ImageTask`, like `split`, `image_size`, `init_scale` and `data_dir`.
        split: See there.
        image_size: See there.
        init_scale: See there.
        model: Makes a module in place of the MLP, from `(batch, C, H, W)` to logits `(batch, classes)`.
        data_dir: See there.
        name: Name in tables and folders; the default is that of the data set.

    Raises:
        ValueError: If an argument is out of range.

    Reference: Andrychowicz et al. 2016, section 3.2, for the MLP on MNIST.
    """

    def __init__(
        self,
        dataset: str = "mnist",
        *,
        hidden_sizes: Sequence[int] = (20,),
        activation: str | Sequence[str] = "sigmoid",
        norm: str | None = None,
        batch_size: int = 128,
        split: Literal["default", "study"] = "default",
        image_size: int | None = None,
        init_scale: float | Sequence[float] = 1.0,
        model: Callable[[], nn.Module] | None = None,
        data_dir: str | Path = "data",
        name: str | None = None,
    ):
        super().__init__(
            dataset,
            batch_size=batch_size,
            split=split,
            image_size=image_size,
            init_scale=init_scale,
            data_dir=data_dir,
        )
        self.hidden_sizes, self.activation = checked_sizes(hidden_sizes), checked_activations(activation)
        if norm not in (None, *NORMS):
            raise ValueError(f"task.norm={norm}: must be {', '.join(NORMS)} or null")
        if model is not None and (isinstance(model, nn.Module) or not callable(model)):
            raise ValueError(
                f"task.model={type(model).__name__}: must be a function that makes a module, such as a class or a "
                "functools.partial; in a configuration, a node with _partial_: true"
            )
        self.norm, self.model = norm, model
        self.name = dataset if name is None else name

    def spec(self) -> dict[str, Any]:
        """What defines the distribution; of `model`, all that can be seen from the modules it makes."""
        return super().spec() | {"model": None if self.model is None else described(self.model)}

    def make_module(self, activation: str) -> nn.Module:
        """One network."""
        if self.model is not None:
            return self.model()
        return MLP([math.prod(self.image_shape), *self.hidden_sizes, self.num_classes], activation, self.norm)

    @property
    def num_classes(self) -> int:
        """Number of classes of the data set."""
        return self._data.num_classes

    def sample(
        self, keys: ProblemKeys, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> ImageProblem:
        """Draw networks; see `Task.sample`. Problem i of episode e takes activation number i + e, in turn."""
        return ImageProblem(self, keys, device=device, dtype=dtype)


class ImageTaskProblem(ModuleProblem):
    """B networks with mini-batches of their own; a subclass adds the loss."""

    stochastic = True

    def __init__(
        self,
        task: ImageTask,
        keys: ProblemKeys,
        factory: Callable[[], nn.Module],
        *,
        device: torch.device | str,
        dtype: torch.dtype,
    ):
        super().__init__(keys, factory, device=device, dtype=dtype)
        self.scale_weights(task.init_scale)
        self._images, self._labels = task.images(keys.split, self._device)
        self._batch_size, self._dtype = task.batch_size, dtype

    def batches(self, first: int, count: int) -> Iterator[ImageBatch]:
        return self._draw(Purpose.BATCH, first, count)

    def final_batches(self, count: int) -> Iterator[ImageBatch]:
        return self._draw(Purpose.FINAL_BATCH, 0, count)

    def _draw(self, purpose: Purpose, first: int, count: int) -> Iterator[ImageBatch]:
        words = self.keys.words(purpose, first, count, self._batch_size)
        rows = torch.from_numpy(integers(words, len(self._images))).to(self._device)
        for step, chosen in enumerate(rows, start=first):
            seeds = ()
            if self.draws_randomly:
                number = 1 + step + _FINAL * (purpose is Purpose.FINAL_BATCH)
                seeds = tuple(self.keys.torch_seed(Purpose.MODULE, i, number) for i in self.keys.indices)
            yield ImageBatch(self._pixels(chosen), self._labels[chosen], seeds)

    def _pixels(self, rows: Tensor) -> Tensor:
        chosen = self._images.index_select(0, rows.flatten()).to(self._dtype).mul_(1 / 255)
        return chosen.view(*rows.shape, *self._images.shape[1:])


class ImageProblem(ImageTaskProblem):
    """B classifiers."""

    def __init__(self, task: ImageClassification, keys: ProblemKeys, *, device: torch.device | str, dtype: torch.dtype):
        names = [task.activation[(i + keys.episode) % len(task.activation)] for i in keys.indices]
        super().__init__(task, keys, lambda: task.make_module(min(names)), device=device, dtype=dtype)
        self._task = task
        mixed = task.model is None and len(set(names)) > 1
        self._mixed = MixedActivation(names, device) if mixed else None

    def outputs(
        self, params: Params, buffers: Buffers, inputs: Tensor, *, seeds: Sequence[int] = (), train: bool = True
    ) -> tuple[Tensor, Buffers]:
        if self._mixed is not None:
            assert isinstance(self._module, MLP)
            return self._module.batched_forward(params.tensors(), inputs, self._mixed), buffers
        return super().outputs(params, buffers, inputs, seeds=seeds, train=train)

    def loss(self, params: Params, buffers: Buffers, batch: ImageBatch) -> tuple[Tensor, Buffers]:
        logits, buffers = self.outputs(params, buffers, batch.inputs, seeds=batch.seeds)
        if logits.dim() != 3 or logits.shape[2] < self._task.num_classes:
            raise ValueError(
                f"task.model={type(self._module).__name__}: its outputs have shape {tuple(logits.shape[1:])}; must be "
                f"({batch.labels.shape[1]}, {self._task.num_classes}), logits for each image of the batch"
            )
        return negative_log_likelihood(logits, batch.labels), buffers

    @torch.no_grad()
    def test_metrics(self, params: Params, buffers: Buffers) -> dict[str, Tensor]:
        """`test_loss` and `accuracy` on the data set's own test images, which nothing is trained on."""
        from torchmetrics.functional.classification import multiclass_accuracy

        images, labels = self._task.images("held_out", self._device)
        size = max(1, _TEST_ELEMENTS // (images[0].numel() * self.num_problems))
        loss = torch.zeros_like(params.flat[:, 0])
        predicted: list[Tensor] = []
        for part, answers in zip(images.split(size), labels.split(size), strict=True):
            pixels = (part.to(self._dtype) / 255).expand(self.num_problems, *part.shape)
            logits, _ = self.outputs(params, buffers, pixels, train=False)
            loss += negative_log_likelihood(logits, answers.expand(self.num_problems, -1)) * len(answers)
            predicted.append(logits.argmax(-1))
        guesses = torch.cat(predicted, 1)
        accuracy = [multiclass_accuracy(row, labels, num_classes=logits.shape[-1], average="micro") for row in guesses]
        return {"test_loss": loss / len(labels), "accuracy": torch.stack(accuracy).to(loss)}


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
