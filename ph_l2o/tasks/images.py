"""Classification of real images by small networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ph_l2o.keys import ProblemKeys
from ph_l2o.params import Params
from ph_l2o.tasks.batched import checked_norm
from ph_l2o.tasks.factory import checked_factory, described
from ph_l2o.tasks.image_task import ImageBatch, ImageTask, ImageTaskProblem
from ph_l2o.tasks.losses import negative_log_likelihood
from ph_l2o.tasks.mlp import MLP, MixedActivation, checked_activations, checked_sizes
from ph_l2o.tasks.task import Buffers

_TEST_ELEMENTS = 2**23  # input numbers of a chunk of test images, over all problems: 32 MiB in float32


class ImageProblem(ImageTaskProblem):
    """B classifiers."""

    def __init__(self, task: ImageClassification, keys: ProblemKeys, *, device: torch.device | str, dtype: torch.dtype):
        names = [task.activation[(i + keys.episode) % len(task.activation)] for i in keys.indices]
        super().__init__(task, keys, lambda: task.make_module(min(names)), device=device, dtype=dtype)
        self._task = task
        mixed = task.model is None and len(set(names)) > 1
        self._mixed = MixedActivation(names, device) if mixed else None

    def outputs(
        self, params: Params, buffers: Buffers, inputs: Tensor, *, seeds: Sequence[int] = ()
    ) -> tuple[Tensor, Buffers]:
        if self._mixed is not None:
            assert isinstance(self._module, MLP)
            return self._module.batched_forward(params.tensors(), inputs, self._mixed), buffers
        return super().outputs(params, buffers, inputs, seeds=seeds)

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
        evaluating = self.evaluating()
        for part, answers in zip(images.split(size), labels.split(size), strict=True):
            pixels = (part.to(self._dtype) / 255).expand(self.num_problems, *part.shape)
            logits, _ = evaluating.outputs(params, buffers, pixels)
            loss += negative_log_likelihood(logits, answers.expand(self.num_problems, -1)) * len(answers)
            predicted.append(logits.argmax(-1))
        guesses = torch.cat(predicted, 1)
        accuracy = [multiclass_accuracy(row, labels, num_classes=logits.shape[-1], average="micro") for row in guesses]
        return {"test_loss": loss / len(labels), "accuracy": torch.stack(accuracy).to(loss)}


class ImageClassification(ImageTask):
    """Train a network on images: mini-batches, negative log-likelihood, pixels in [0, 1].

    Problem i of episode e takes activation number i + e, in turn. The data set's own test images give `test_loss` and
    `accuracy`.

    Args:
        dataset: A name of `ph_l2o.data.DATASETS`.
        hidden_sizes: Units of the MLP's hidden layers, each >= 1.
        activation: Of the MLP: a name of `ph_l2o.tasks.ACTIVATIONS`, or several that the problems take in turn.
        norm: Of the MLP: `layer` or `batch` before each activation, or None.
        batch_size: As for `ImageTask`, like `split`, `image_size`, `init_scale`, `train_images`, `label_noise` and
            `data_dir`.
        split: See there.
        image_size: See there.
        init_scale: See there.
        train_images: See there.
        label_noise: See there.
        model: Makes a module in place of the MLP, from `(batch, C, H, W)` to logits `(batch, classes)`.
        data_dir: See there.
        name: Name in tables and folders; the default is that of the data set.

    Raises:
        ValueError: If an argument is out of range.

    Reference: Andrychowicz et al. 2016, section 3.2, for the MLP on MNIST.
    """

    problem_type = ImageProblem

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
        train_images: int | None = None,
        label_noise: float = 0.0,
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
            train_images=train_images,
            label_noise=label_noise,
            data_dir=data_dir,
        )
        self.hidden_sizes, self.activation = checked_sizes(hidden_sizes), checked_activations(activation)
        self.norm, self.model = checked_norm(norm), None if model is None else checked_factory(model)
        self.name = dataset if name is None else name

    def spec(self) -> dict[str, Any]:
        """What defines the distribution; of `model`, all that can be seen from the modules it makes."""
        return super().spec() | {"model": None if self.model is None else described(self.model)}

    def make_module(self, activation: str) -> nn.Module:
        """One network."""
        if self.model is not None:
            return self.model()
        return MLP([math.prod(self.image_shape), *self.hidden_sizes, self.num_classes], activation, self.norm)
