"""Classification of real images by small networks."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ph_l2o.data import DATASETS, ImageData, load_images, split_indices
from ph_l2o.params import Params
from ph_l2o.random import ProblemKeys, Purpose, integers
from ph_l2o.suggestions import did_you_mean
from ph_l2o.tasks.base import Buffers, Task
from ph_l2o.tasks.mlp import ACTIVATIONS, MLP, MixedActivation
from ph_l2o.tasks.module import ModuleProblem, seeded

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


class ImageClassification(Task):
    """Train a network on images: mini-batches, negative log-likelihood, pixels in [0, 1].

    The training images are split between meta-training, validation and test (`ph_l2o.data.split_indices`); the data
    set's own test images are never trained on, and give `test_loss` and `accuracy`.

    Args:
        dataset: `mnist`, `fashion_mnist` or `cifar10`.
        hidden_sizes: Units of the MLP's hidden layers, each >= 1.
        activation: Of the MLP: a name of `ph_l2o.tasks.ACTIVATIONS`, or several that the problems take in turn.
        batch_size: Images of a mini-batch, >= 1.
        split: `default` (a third, a sixth and half of the training images), or `study` (halves; validation shares
            the training half).
        model: Makes a module in place of the MLP, from `(batch, C, H, W)` to logits `(batch, classes)`.
        data_dir: Folder of the data sets.
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
        batch_size: int = 128,
        split: Literal["default", "study"] = "default",
        model: Callable[[], nn.Module] | None = None,
        data_dir: str | Path = "data",
        name: str | None = None,
    ):
        if isinstance(activation, str) or not isinstance(activation, Sequence):
            activation = (activation,)
        activations = tuple(activation)
        if dataset not in DATASETS:
            raise ValueError(f"task.dataset={dataset}: must be one of {', '.join(DATASETS)}")
        if not isinstance(hidden_sizes, Sequence) or any(not isinstance(n, int) or n < 1 for n in hidden_sizes):
            raise ValueError(f"task.hidden_sizes={hidden_sizes}: must be a list of whole numbers >= 1 (units)")
        if not activations:
            raise ValueError("task.activation=[]: must name at least one activation")
        for kind in activations:
            if kind not in ACTIVATIONS:
                hint = did_you_mean(kind, ACTIVATIONS, 1)
                raise ValueError(f"task.activation={kind}: must be of {', '.join(ACTIVATIONS)}{hint}")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"task.batch_size={batch_size}: must be >= 1 (whole number of images of a mini-batch)")
        if split not in ("default", "study"):
            raise ValueError(f"task.split={split}: must be default or study")
        if model is not None and (isinstance(model, nn.Module) or not callable(model)):
            raise ValueError(
                f"task.model={type(model).__name__}: must be a function that makes a module, such as a class or a "
                "functools.partial; in a configuration, a node with _partial_: true"
            )
        self.dataset, self.hidden_sizes, self.activation = dataset, tuple(hidden_sizes), activations
        self.batch_size, self.split, self.model = batch_size, split, model
        self.name = dataset if name is None else name
        self._data_dir = str(data_dir)
        self._splits: dict[tuple[str, torch.device], tuple[Tensor, Tensor]] = {}

    @cached_property
    def _data(self) -> ImageData:
        return load_images(self.dataset, self._data_dir)

    def prepare(self) -> None:
        """Find, fetch and verify the data."""
        _ = self._data

    def spec(self) -> dict[str, Any]:
        """What defines the distribution; of `model`, all that can be seen from the modules it makes."""
        return super().spec() | {"model": None if self.model is None else _described(self.model)}

    def images(self, split: str, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Images `(N, C, H, W)` in uint8 and labels `(N,)` of a split, or of `held_out`, on the device."""
        key = split, torch.device(device)
        if key not in self._splits:
            data = self._data
            if split == "held_out":
                images, labels = data.test_images, data.test_labels
            else:
                rows = split_indices(len(data.train_images), split, self.split)  # type: ignore[arg-type]
                images, labels = data.train_images[rows], data.train_labels[rows]
            self._splits[key] = images.to(device), labels.to(device)
        return self._splits[key]

    def make_module(self, activation: str) -> nn.Module:
        """One network."""
        if self.model is not None:
            return self.model()
        return MLP([self._data.train_images[0].numel(), *self.hidden_sizes, self.num_classes], activation)

    @property
    def num_classes(self) -> int:
        """Number of classes of the data set."""
        return self._data.num_classes

    def sample(
        self, keys: ProblemKeys, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> ImageProblem:
        """Draw networks; see `Task.sample`. Problem i of episode e takes activation number i + e, in turn."""
        return ImageProblem(self, keys, device=device, dtype=dtype)


class ImageProblem(ModuleProblem):
    """B networks with mini-batches of their own."""

    stochastic = True

    def __init__(self, task: ImageClassification, keys: ProblemKeys, *, device: torch.device | str, dtype: torch.dtype):
        names = [task.activation[(i + keys.episode) % len(task.activation)] for i in keys.indices]
        super().__init__(keys, lambda: task.make_module(min(names)), device=device, dtype=dtype)
        self._task, self._dtype = task, dtype
        mixed = task.model is None and len(set(names)) > 1
        self._mixed = MixedActivation(names, device) if mixed else None

    def batches(self, first: int, count: int) -> Iterator[ImageBatch]:
        return self._draw(Purpose.BATCH, first, count)

    def final_batches(self, count: int) -> Iterator[ImageBatch]:
        return self._draw(Purpose.FINAL_BATCH, 0, count)

    def _draw(self, purpose: Purpose, first: int, count: int) -> Iterator[ImageBatch]:
        images, labels = self._task.images(self.keys.split, self._device)
        words = self.keys.words(purpose, first, count, self._task.batch_size)
        rows = torch.from_numpy(integers(words, len(images))).to(self._device)
        for step, chosen in enumerate(rows, start=first):
            seeds = ()
            if self.draws_randomly:
                number = 1 + step + _FINAL * (purpose is Purpose.FINAL_BATCH)
                seeds = tuple(self.keys.torch_seed(Purpose.MODULE, i, number) for i in self.keys.indices)
            yield ImageBatch(self._pixels(images, chosen), labels[chosen], seeds)

    def _pixels(self, images: Tensor, rows: Tensor) -> Tensor:
        chosen = images.index_select(0, rows.flatten()).to(self._dtype).mul_(1 / 255)
        return chosen.view(*rows.shape, *images.shape[1:])

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
        return _negative_log_likelihood(logits, batch.labels), buffers

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
            loss += _negative_log_likelihood(logits, answers.expand(self.num_problems, -1)) * len(answers)
            predicted.append(logits.argmax(-1))
        guesses = torch.cat(predicted, 1)
        accuracy = [multiclass_accuracy(row, labels, num_classes=logits.shape[-1], average="micro") for row in guesses]
        return {"test_loss": loss / len(labels), "accuracy": torch.stack(accuracy).to(loss)}


def _negative_log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the batch, `(B, batch, classes)` and `(B, batch)` → `(B,)`; a product is cheaper than a gather."""
    # A comparison, since `one_hot` looks at the values, which no compiled or traced step can.
    chosen = labels[..., None] == torch.arange(logits.shape[-1], device=labels.device)
    return (logits.log_softmax(-1) * chosen).sum((1, 2)) / -labels.shape[1]


def _described(model: Callable[[], nn.Module]) -> dict[str, str]:
    """A factory in words that are the same in every process."""
    module = seeded(model, 0)
    digest = hashlib.sha256()
    for name, part in module.named_modules():
        plain = {k: v for k, v in vars(part).items() if isinstance(v, bool | int | float | str | tuple)}
        digest.update(f"{name} {sorted(plain.items())!r}".encode())
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return {"factory": _name(model), "module": repr(module), "start": digest.hexdigest()[:16]}


def _name(factory: Any) -> str:
    if isinstance(factory, functools.partial):
        arguments = [*map(_name, factory.args), *(f"{k}={_name(v)}" for k, v in factory.keywords.items())]
        return f"{_name(factory.func)}({', '.join(arguments)})"
    if hasattr(factory, "__qualname__"):
        return f"{factory.__module__}.{factory.__qualname__}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(factory))
