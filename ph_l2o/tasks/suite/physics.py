"""Physics-informed networks: the loss is the residual of a differential equation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from ph_l2o.checks import at_least
from ph_l2o.keys import ProblemKeys, Purpose, uniforms
from ph_l2o.params import Params
from ph_l2o.tasks.mlp import MLP
from ph_l2o.tasks.module import ModuleProblem
from ph_l2o.tasks.task import Buffers, StochasticProblem, Task, stacked

_HARMONICS = 4


class _WithDerivatives(MLP):
    """A tanh network of one variable, with its first two derivatives carried along."""

    def batched_forward(self, tensors: Mapping[str, Tensor], inputs: Tensor, activation: object = None) -> Tensor:
        """Points `(B, points, 1)` → u, u′ and u″, `(B, points, 3)`."""
        del activation
        value, slope, bend = inputs, torch.ones_like(inputs), torch.zeros_like(inputs)
        for k in range(self.num_layers):
            weight = tensors[f"weight{k}"]
            value = torch.baddbmm(tensors[f"bias{k}"][:, None], value, weight)
            slope, bend = slope @ weight, bend @ weight
            if k < self.num_layers - 1:
                value = torch.tanh(value)
                factor = 1 - value.square()
                bend = factor * (bend - 2 * value * slope.square())
                slope = factor * slope
        return torch.cat([value, slope, bend], -1)


def _forces(generator: np.random.Generator) -> tuple[np.ndarray]:
    # The factor (kπ)² of the second derivative, times 1/k.
    return (generator.standard_normal(_HARMONICS) * math.pi**2 * np.arange(1, _HARMONICS + 1),)


class PoissonProblem(StochasticProblem, ModuleProblem):
    """B equations."""

    def __init__(self, task: Poisson, keys: ProblemKeys, *, device: torch.device | str, dtype: torch.dtype):
        sizes = [1, task.width, task.width, 1]
        super().__init__(keys, lambda: _WithDerivatives(sizes, "tanh"), device=device, dtype=dtype)
        self._batch_size = task.batch_size
        (self._forces,) = stacked(keys, _forces, device=device, dtype=dtype)

    def draw(self, purpose: Purpose, first: int, count: int) -> Iterator[Tensor]:
        words = self.keys.words(purpose, first, count, self._batch_size)
        return iter(torch.from_numpy(uniforms(words)).to(device=self._device, dtype=self._dtype))

    def loss(self, params: Params, buffers: Buffers, batch: Tensor) -> tuple[Tensor, Buffers]:
        ends = torch.tensor([0.0, 1.0], device=batch.device, dtype=batch.dtype).expand(len(batch), 2)
        outputs, buffers = self.outputs(params, buffers, torch.cat([batch, ends], 1)[..., None])
        u, _, bend = outputs.unbind(-1)
        waves = torch.sin(math.pi * batch[..., None] * torch.arange(1, _HARMONICS + 1, device=batch.device))
        force = (waves * self._forces[:, None]).sum(-1)
        residual = (u[:, :-2].pow(3) - bend[:, :-2] - force) / math.pi**2
        return residual.square().mean(1) + 10 * u[:, -2:].square().mean(1), buffers


class Poisson(Task):
    """Solve -u″ + u³ = f on [0, 1] with u(0) = u(1) = 0 by a network: mean squared residual at random points.

    f is that of a solution Σ_k a_k sin(kπx) without the cube, a_k ~ N(0, 1/k²), over k = 1 … 4. In the loss, residuals
    are divided by π², and the boundary counts ten times. The Hessian is ill-conditioned: the residual weighs a
    frequency by its fourth power.

    Args:
        width: Units of the two hidden layers, >= 1.
        batch_size: Points of a mini-batch, >= 1.
        name: Name in tables.

    Raises:
        ValueError: If an argument is out of range.

    Reference: Raissi, Perdikaris and Karniadakis 2019.
    """

    problem_type = PoissonProblem

    def __init__(self, width: int = 32, *, batch_size: int = 64, name: str = "poisson"):
        self.width = at_least("task.width", width, 1, "units of the hidden layers")
        self.batch_size, self.name = at_least("task.batch_size", batch_size, 1, "points of a mini-batch"), name
