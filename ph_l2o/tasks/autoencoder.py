"""Autoencoders of real images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ph_l2o.checks import one_of
from ph_l2o.keys import ProblemKeys
from ph_l2o.params import Params
from ph_l2o.tasks.batched import checked_norm
from ph_l2o.tasks.image_task import ImageBatch, ImageTask, ImageTaskProblem
from ph_l2o.tasks.mlp import ACTIVATIONS, MLP, checked_sizes
from ph_l2o.tasks.task import Buffers


class AutoencoderProblem(ImageTaskProblem):
    """B autoencoders."""

    def __init__(self, task: Autoencoder, keys: ProblemKeys, *, device: torch.device | str, dtype: torch.dtype):
        super().__init__(task, keys, task.make_module, device=device, dtype=dtype)
        self._by_logits = task.loss == "bce"

    def loss(self, params: Params, buffers: Buffers, batch: ImageBatch) -> tuple[Tensor, Buffers]:
        outputs, buffers = self.outputs(params, buffers, batch.inputs)
        pixels = batch.inputs.flatten(2)
        losses = F.softplus(outputs) - outputs * pixels if self._by_logits else (outputs - pixels).square()
        return losses.mean((1, 2)), buffers


class Autoencoder(ImageTask):
    """Reconstruct images through a narrow layer, by an MLP that is symmetric around it.

    Args:
        dataset: A name of `ph_l2o.data.DATASETS`.
        hidden_sizes: Units of the encoder's layers, the code last; the decoder has them in reverse; each >= 1.
        activation: A name of `ph_l2o.tasks.ACTIVATIONS`.
        norm: `layer` or `batch` before each activation, or None.
        loss: `mse`, the mean squared error of the pixels, or `bce`, their mean binary cross-entropy, for which the
            outputs are logits.
        batch_size: As for `ImageTask`, like `split`, `image_size`, `init_scale`, `train_images` and `data_dir`.
        split: See there.
        image_size: See there.
        init_scale: See there.
        train_images: See there.
        data_dir: See there.
        name: Name in tables and folders; the default is `autoencoder`.

    Raises:
        ValueError: If an argument is out of range.

    Reference: Hinton and Salakhutdinov 2006, "Reducing the dimensionality of data with neural networks".
    """

    problem_type = AutoencoderProblem

    def __init__(
        self,
        dataset: str = "mnist",
        *,
        hidden_sizes: Sequence[int] = (32, 8),
        activation: str = "relu",
        norm: str | None = None,
        loss: Literal["mse", "bce"] = "mse",
        batch_size: int = 64,
        split: Literal["default", "study"] = "default",
        image_size: int | None = 14,
        init_scale: float | Sequence[float] = 1.0,
        train_images: int | None = None,
        data_dir: str | Path = "data",
        name: str = "autoencoder",
    ):
        super().__init__(
            dataset,
            batch_size=batch_size,
            split=split,
            image_size=image_size,
            init_scale=init_scale,
            train_images=train_images,
            data_dir=data_dir,
        )
        self.hidden_sizes = checked_sizes(hidden_sizes)
        if not self.hidden_sizes:
            raise ValueError("task.hidden_sizes=[]: must have at least one layer, the code")
        self.activation, self.norm = one_of("task.activation", activation, ACTIVATIONS), checked_norm(norm)
        self.loss, self.name = one_of("task.loss", loss, ("mse", "bce")), name

    def make_module(self) -> MLP:
        """One network."""
        pixels = math.prod(self.image_shape)
        return MLP([pixels, *self.hidden_sizes, *self.hidden_sizes[-2::-1], pixels], self.activation, self.norm)
