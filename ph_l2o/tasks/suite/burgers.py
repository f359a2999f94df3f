"""Physics-informed networks for a partial differential equation whose solution is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from ph_l2o.checks import at_least, number
from ph_l2o.keys import ProblemKeys, Purpose, uniforms
from ph_l2o.params import Params
from ph_l2o.tasks.mlp import MLP
from ph_l2o.tasks.module import ModuleProblem
from ph_l2o.tasks.task import Buffers, StochasticProblem, Task, stacked

_GRID = 32  # points of each axis on which the solution is compared


class _WithDerivatives(MLP):
    """A tanh network of place and time, with the derivatives that the equation needs carried along."""

    def batched_forward(self, tensors: Mapping[str, Tensor], inputs: Tensor, activation: object = None) -> Tensor:
        """Points (x, t) `(B, points, 2)` → u, ∂u/∂x, ∂u/∂t and ∂²u/∂x², `(B, points, 4)`."""
        del activation
        value, bend = inputs, torch.zeros_like(inputs)
        by_x, by_t = torch.zeros_like(inputs), torch.zeros_like(inputs)
        by_x[..., 0], by_t[..., 1] = 1, 1
        for k in range(self.num_layers):
            weight = tensors[f"weight{k}"]
            value = torch.baddbmm(tensors[f"bias{k}"][:, None], value, weight)
            by_x, by_t, bend = by_x @ weight, by_t @ weight, bend @ weight
            if k < self.num_layers - 1:
                value = torch.tanh(value)
                factor = 1 - value.square()
                bend = factor * (bend - 2 * value * by_x.square())
                by_x, by_t = factor * by_x, factor * by_t
        return torch.cat([value, by_x, by_t, bend], -1)


class BurgersProblem(StochasticProblem, ModuleProblem):
    """B waves."""

    def __init__(self, task: Burgers, keys: ProblemKeys, *, device: torch.device | str, dtype: torch.dtype):
        sizes = [2, *[task.width] * task.depth, 1]
        super().__init__(keys, lambda: _WithDerivatives(sizes, "tanh"), device=device, dtype=dtype)
        self._viscosity, self._batch_size = task.viscosity, task.batch_size
        (self._waves,) = stacked(keys, _wave, device=device, dtype=dtype)

    def draw(self, purpose: Purpose, first: int, count: int) -> Iterator[Tensor]:
        words = self.keys.words(purpose, first, count, 2 * self._batch_size)
        numbers = torch.from_numpy(uniforms(words)).to(device=self._device, dtype=self._dtype)
        return iter(numbers.unflatten(-1, (-1, 2)) * numbers.new_tensor([2, 1]) - numbers.new_tensor([1, 0]))

    def loss(self, params: Params, buffers: Buffers, batch: Tensor) -> tuple[Tensor, Buffers]:
        # The same numbers once more on the border: at the start, and at both ends.
        third = self._batch_size // 3
        border = batch.clone()
        border[:, :third, 1] = 0
        border[:, third : 2 * third, 0], border[:, 2 * third :, 0] = -1, 1
        outputs, buffers = self.outputs(params, buffers, torch.cat([batch, border], 1))
        inside, outside = outputs.chunk(2, 1)
        u, by_x, by_t, bend = inside.unbind(-1)
        residual = by_t + u * by_x - self._viscosity * bend
        error = outside[..., 0] - self.solution(border)
        return residual.square().mean(1) + 10 * error.square().mean(1), buffers

    def solution(self, points: Tensor) -> Tensor:
        """The solution at points (x, t) `(B, points, 2)`."""
        height, speed, start = self._waves[:, None].unbind(-1)
        distance = points[..., 0] - speed * points[..., 1] - start
        return speed - height * torch.tanh(height * distance / (2 * self._viscosity))

    @torch.no_grad()
    def test_metrics(self, params: Params, buffers: Buffers) -> dict[str, Tensor]:
        """`test_loss`: squared error to the solution on a grid, over the solution's variance there."""
        axis = torch.linspace(0, 1, _GRID, device=self._device, dtype=self._dtype)
        grid = torch.cartesian_prod(2 * axis - 1, axis).expand(self.num_problems, -1, -1)
        truth, outputs = self.solution(grid), self.outputs(params, buffers, grid)[0]
        return {"test_loss": (outputs[..., 0] - truth).square().mean(1) / truth.var(1)}


def _wave(generator: np.random.Generator) -> tuple[np.ndarray]:
    """Height, speed and start of a front."""
    return (generator.uniform([0.5, -0.5, -0.3], [1.0, 0.5, 0.3]),)


class Burgers(Task):
    """Solve u_t + u u_x = ν u_xx on [-1, 1] × [0, 1] by a network: squared residual, and 10 times that of the border.

    The solution, which gives the values on the border, is a travelling front, c - a tanh(a (x - c t - x₀) / 2ν), of
    random height a, speed c and start x₀. `test_loss` is the error to it inside.

    Args:
        width: Units of a hidden layer, >= 1.
        depth: Hidden layers, >= 1.
        viscosity: ν, > 0; a front is about 2ν / a wide.
        batch_size: Points of a mini-batch inside, and as many on the border, >= 3.
        name: Name in tables.

    Raises:
        ValueError: If an argument is out of range.

    Reference: Raissi, Perdikaris and Karniadakis 2019; Whitham 1974, section 4.2, for the front.
    """

    problem_type = BurgersProblem

    def __init__(
        self,
        width: int = 24,
        *,
        depth: int = 3,
        viscosity: float = 0.05,
        batch_size: int = 48,
        name: str = "burgers",
    ):
        self.width = at_least("task.width", width, 1, "units of a hidden layer")
        self.depth = at_least("task.depth", depth, 1, "hidden layers")
        self.viscosity = number("task.viscosity", viscosity, above=0)
        self.batch_size, self.name = at_least("task.batch_size", batch_size, 3, "points of a mini-batch"), name
