"""Variational auto-encoders of images."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ph_l2o.checks import at_least
from ph_l2o.keys import ProblemKeys
from ph_l2o.params import Params
from ph_l2o.tasks.image_task import ImageTask
from ph_l2o.tasks.rows import Batch, RowProblem
from ph_l2o.tasks.task import Buffers


class _AutoEncoder(nn.Module):
    """Pixels and noise side by side `(batch, pixels + latent)` → logits of pixels, mean and log variance."""

    def __init__(self, pixels: int, hidden: int, latent: int):
        super().__init__()
        self.pixels, self.latent = pixels, latent
        self.encoder = nn.Sequential(nn.Linear(pixels, hidden), nn.SiLU(), nn.Linear(hidden, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.SiLU(), nn.Linear(hidden, pixels))

    def forward(self, x: Tensor) -> Tensor:
        pixels, noise = x.split([self.pixels, self.latent], -1)
        mean, log_variance = self.encoder(pixels).chunk(2, -1)
        decoded = self.decoder(mean + (0.5 * log_variance).exp() * noise)
        return torch.cat([decoded, mean, log_variance], -1)


class VAEProblem(RowProblem):
    """B auto-encoders."""

    def __init__(self, task: VAE, keys: ProblemKeys, *, device: torch.device | str, dtype: torch.dtype):
        images, _ = task.images(keys.split, device)
        pixels = images[0].numel()
        super().__init__(
            keys, lambda: _AutoEncoder(pixels, task.hidden, task.latent), (images,), task.batch_size,
            noise=task.latent, trained=len(images) - task.held_out,
            held_out=range(len(images) - task.held_out, len(images)), device=device, dtype=dtype,
        )  # fmt: skip
        self._latent = task.latent

    def batch(self, rows: Tensor, step: int) -> Batch:
        (images,), noise, _ = super().batch(rows, step)
        return Batch((images.flatten(2).to(self._dtype) / 255,), noise)

    def loss(self, params: Params, buffers: Buffers, batch: Batch) -> tuple[Tensor, Buffers]:
        (pixels,), noise, _ = batch
        assert noise is not None
        outputs, buffers = self.outputs(params, buffers, torch.cat([pixels, noise], -1))
        logits, mean, log_variance = outputs.split([pixels.shape[-1], self._latent, self._latent], -1)
        reconstruction = F.binary_cross_entropy_with_logits(logits, pixels, reduction="none").sum(-1)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)
        return (reconstruction + divergence).mean(1) / pixels.shape[-1], buffers


class VAE(ImageTask):
    """Cross-entropy of the pixels plus the code's divergence from a standard normal, in nats for each pixel.

    Args:
        dataset: A name of `ph_l2o.data.DATASETS`.
        hidden: Units of the encoder's and the decoder's hidden layer, >= 1.
        latent: Numbers of a code, >= 1.
        batch_size: Images of a mini-batch, >= 1.
        held_out: Images of each split that are not trained on, and give `test_loss`, >= 0.
        data_dir: Folder of the data sets.
        name: Name in tables.

    Raises:
        ValueError: If an argument is out of range.

    Reference: Kingma and Welling 2014.
    """

    problem_type = VAEProblem

    def __init__(
        self,
        dataset: str = "mnist",
        *,
        hidden: int = 64,
        latent: int = 8,
        batch_size: int = 32,
        held_out: int = 0,
        data_dir: str | Path = "data",
        name: str = "vae",
    ):
        super().__init__(dataset, batch_size=batch_size, data_dir=data_dir)
        self.hidden = at_least("task.hidden", hidden, 1, "units")
        self.held_out = at_least("task.held_out", held_out, 0, "images that are not trained on")
        self.latent, self.name = at_least("task.latent", latent, 1, "numbers of a code"), name
