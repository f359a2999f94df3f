"""Images as functions of the coordinates."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from ph_l2o.checks import at_least, one_of
from ph_l2o.keys import ProblemKeys, Purpose, Split, integers
from ph_l2o.params import Params
from ph_l2o.tasks.module import ModuleProblem
from ph_l2o.tasks.suite.tabular import bundled
from ph_l2o.tasks.task import Buffers, StochasticProblem, Task, stacked

# Number of the photograph, of 427 × 640 pixels, and the first and last column: meta-training and validation share one.
PLACES = {"train": (0, 0, 400), "val": (0, 400, 640), "test": (1, 0, 640)}


class _Sine(nn.Module):
    """A layer of SIREN with its own start, sin(ω (W x + b))."""

    def __init__(self, fan_in: int, fan_out: int, omega: float, *, first: bool):
        super().__init__()
        self.linear, self.omega = nn.Linear(fan_in, fan_out), omega
        bound = 1 / fan_in if first else math.sqrt(6 / fan_in) / omega
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.omega * self.linear(x))


class Siren(nn.Sequential):
    """Coordinates `(points, 2)` → `(points, 1)` by layers of sines.

    Reference: Sitzmann et al. 2020, section 3.2; ω = 15 suits small images.
    """

    def __init__(self, width: int, omega: float = 15.0):
        super().__init__(
            _Sine(2, width, omega, first=True), _Sine(width, width, omega, first=False), nn.Linear(width, 1)
        )


class FourierFeatures(nn.Module):
    """Coordinates `(points, 2)` → `(points, 1)`: sines and cosines of random frequencies, then a perceptron.

    Reference: Tancik et al. 2020.
    """

    frequencies: Tensor

    def __init__(self, width: int, scale: float = 2.0):
        super().__init__()
        self.register_buffer("frequencies", 2 * math.pi * scale * torch.randn(2, width // 2))
        self.layers = nn.Sequential(
            nn.Linear(width // 2 * 2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        phases = x @ self.frequencies
        return self.layers(torch.cat([phases.sin(), phases.cos()], -1))


MODELS = {"siren": Siren, "fourier": FourierFeatures}


class ImageFitProblem(StochasticProblem, ModuleProblem):
    """B parts of photographs."""

    def __init__(self, task: ImageFit, keys: ProblemKeys, *, device: torch.device | str, dtype: torch.dtype):
        super().__init__(keys, lambda: MODELS[task.model](task.width), device=device, dtype=dtype)
        self._batch_size = task.batch_size
        (self._values,) = stacked(keys, functools.partial(task.part, keys.split), device=device, dtype=dtype)
        axis = torch.linspace(-1, 1, task.size, dtype=torch.float64)
        self._places = torch.cartesian_prod(axis, axis).to(device=device, dtype=dtype)
        order = torch.from_numpy(np.random.default_rng(0).permutation(task.size**2)).to(device)
        self._held_out, self._shown = order[: task.held_out], order[task.held_out :].sort()[0]

    def draw(self, purpose: Purpose, first: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        words = self.keys.words(purpose, first, count, self._batch_size)
        for drawn in torch.from_numpy(integers(words, len(self._shown))).to(self._device):
            chosen = self._shown[drawn]
            yield self._places[chosen], self._values.gather(1, chosen)

    def loss(self, params: Params, buffers: Buffers, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Buffers]:
        outputs, buffers = self.outputs(params, buffers, batch[0])
        return (outputs[..., 0] - batch[1]).square().mean(1), buffers

    @torch.no_grad()
    def test_metrics(self, params: Params, buffers: Buffers) -> dict[str, Tensor]:
        """`test_loss` on the pixels that are held out."""
        if not len(self._held_out):
            return {}
        places = self._places[self._held_out].expand(self.num_problems, -1, -1)
        return {"test_loss": self.loss(params, buffers, (places, self._values[:, self._held_out]))[0]}


class ImageFit(Task):
    """Fit a network to a part of a photograph: the part of the grey values' variance that it leaves, at random pixels.

    The photographs come with scikit-learn. Every problem has a part of its own, at a random place.

    Args:
        model: `siren` or `fourier`.
        width: Of the network's layers, >= 2.
        size: Height and width in pixels of a part, each the mean of 4 × 4 pixels of the photograph, 2 to 60.
        batch_size: Pixels of a mini-batch, >= 1.
        held_out: Pixels that are not trained on, the same of all parts, and give `test_loss`; >= 0, < size².
        name: Name in tables.

    Raises:
        ValueError: If an argument is out of range.
    """

    problem_type = ImageFitProblem

    def __init__(
        self,
        model: str = "siren",
        *,
        width: int = 32,
        size: int = 32,
        batch_size: int = 256,
        held_out: int = 0,
        name: str = "image_fit",
    ):
        self.model, self.width = one_of("task.model", model, MODELS), at_least("task.width", width, 2, "of the layers")
        self.size = at_least("task.size", size, 2, "pixels")
        if size > 60:
            raise ValueError(f"task.size={size}: must be <= 60 (pixels; a quarter of the photograph's part)")
        self.held_out = at_least("task.held_out", held_out, 0, "pixels that are not trained on")
        if held_out >= size**2:
            raise ValueError(f"task.held_out={held_out}: must be < {size**2}, the pixels")
        self.batch_size, self.name = at_least("task.batch_size", batch_size, 1, "pixels of a mini-batch"), name

    def prepare(self) -> None:
        """Read the photographs."""
        _ = self._photographs

    @cached_property
    def _photographs(self) -> list[Tensor]:
        images = bundled("datasets", f"task.model={self.model}").load_sample_images().images
        return [torch.from_numpy(image.copy()).double().mean(-1) / 255 for image in images]

    def part(self, split: Split, generator: np.random.Generator) -> tuple[np.ndarray]:
        """Grey values of one problem's part, `(size · size,)`, of mean 0 and variance 1."""
        number, left, right = PLACES[split]
        photograph, side = self._photographs[number][:, left:right], 4 * self.size
        top, left = (int(generator.integers(0, room - side + 1)) for room in photograph.shape)
        part = photograph[top : top + side, left : left + side]
        small = part.unflatten(1, (-1, 4)).unflatten(0, (-1, 4)).mean((1, 3))
        scaled = (small - small.mean()) / small.std().clamp_min(1e-2)  # a part may be all sky
        return (scaled.flatten().numpy(),)
