"""Classic test functions of non-convex optimisation, in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ph_l2o.checks import at_least, number, one_of
from ph_l2o.keys import ProblemKeys, Purpose, normals
from ph_l2o.params import Params
from ph_l2o.tasks.task import Buffers, StochasticProblem, Task, stacked

# The functions are written as sums of terms that cannot become negative, by rounding neither.


def rosenbrock(z: Tensor, _: Tensor) -> Tensor:
    """Σ 100 (z_{i+1} - z_i²)² + (1 - z_i)²; minimum 0 at (1, …, 1), at the end of a bent valley."""
    a, b = z[:, :-1], z[:, 1:]
    return (100 * (b - a.square()).square() + (1 - a).square()).sum(1)


def rastrigin(z: Tensor, _: Tensor) -> Tensor:
    """10 n + Σ z_i² - 10 cos 2πz_i; minimum 0 at 0, a local one near every point of whole numbers."""
    return (z.square() + 20 * torch.sin(math.pi * z).square()).sum(1)


def ackley(z: Tensor, _: Tensor) -> Tensor:
    """20 + e - 20 exp(-0.2 √mean z²) - exp(mean cos 2πz); minimum 0 at 0.

    The root is √(mean z² + δ²) - δ with δ = 1e-3, since its second derivative is infinite at 0 otherwise.
    """
    root = (z.square().mean(1) + 1e-6).sqrt() - 1e-3
    waves = -2 * torch.sin(math.pi * z).square().mean(1)  # mean cos 2πz - 1
    return -20 * torch.expm1(-0.2 * root.clamp(min=0)) - math.e * torch.expm1(waves)


_STYBLINSKI_TANG = -2.9035340277711771  # where its minimum lies


def styblinski_tang(z: Tensor, _: Tensor) -> Tensor:
    """½ Σ z⁴ - 16 z² + 5 z, plus 39.16617 n: minimum 0 at (-2.9035, …), one of 2ⁿ local ones."""
    a = _STYBLINSKI_TANG
    return 0.5 * ((z - a).square() * ((z + a).square() + (2 * a * a - 16))).sum(1)


def levy(z: Tensor, _: Tensor) -> Tensor:
    """sin² πw_1 + Σ_{i<n} (w_i - 1)² (1 + 10 sin²(πw_i + 1)) + (w_n - 1)² (1 + sin² 2πw_n), w = 1 + (z - 1) / 4.

    Minimum 0 at (1, …, 1).
    """
    u = 0.25 * (z - 1)  # w - 1
    inner, last = u[:, :-1], u[:, -1]
    middle = (inner.square() * (1 + 10 * torch.sin(math.pi * (inner + 1) + 1).square())).sum(1)
    ends = torch.sin(math.pi * u[:, 0]).square() + last.square() * (1 + torch.sin(2 * math.pi * last).square())
    return ends + middle


def saddle(z: Tensor, curvatures: Tensor) -> Tensor:
    """Σ ½ λ_i z_i² + ¼ z_i⁴, plus Σ ¼ min(λ_i, 0)²: minima 0 at z_i² = -min(λ_i, 0), a saddle at 0."""
    down = curvatures.clamp(max=0)
    return (0.25 * (z.square() + down).square() + 0.5 * (curvatures - down) * z.square()).sum(1)


class Function(NamedTuple):
    """A function of `(B, n)` and the curvatures, the half-width of the box of starts, and the fewest coordinates."""

    value: Callable[[Tensor, Tensor], Tensor]
    start: float
    min_dim: int = 1


FUNCTIONS = {
    "rosenbrock": Function(rosenbrock, 2.048, 2),
    "rastrigin": Function(rastrigin, 5.12),
    "ackley": Function(ackley, 5.0),
    "styblinski_tang": Function(styblinski_tang, 5.0),
    "levy": Function(levy, 10.0),
    "saddle": Function(saddle, 0.1),
}


class LandscapeProblem(StochasticProblem):
    """B problems; see `Landscape` for what the tensors are."""

    purpose = Purpose.NOISE

    def __init__(self, task: Landscape, keys: ProblemKeys, *, device: torch.device | str, dtype: torch.dtype):
        start, rotation, self.center, self.curvatures, self.scale, height = stacked(
            keys, task.coordinates, device=device, dtype=dtype
        )
        self.keys, self.params, self.height = keys, Params.from_tensors({"x": start}), height[:, 0]
        self.rotation = rotation if task.rotate or task.kind == "saddle" else None
        self.noise, self.stochastic = task.noise, task.noise > 0
        self._function = FUNCTIONS[task.kind].value

    def draw(self, purpose: Purpose, first: int, count: int) -> Iterator[Any]:
        if not self.stochastic:
            return iter([None] * count)
        n = self.center.shape[1]
        noise = self.noise * normals(self.keys.words(purpose, first, count, n + n % 2))[..., :n]
        return iter(torch.from_numpy(noise).to(self.center))

    def loss(self, params: Params, buffers: Buffers, batch: Any) -> tuple[Tensor, Buffers]:
        z = self.scale * (params.flat - self.center)
        if self.rotation is not None:
            z = (self.rotation @ z[..., None])[..., 0]
        return self.height * self._function(z if batch is None else z + batch, self.curvatures), buffers


class Landscape(Task):
    """f(x) = h g(z), z = s Q (x - c): a test function g in random coordinates, from z₀ ~ U(-start, start)ⁿ.

    By default f is g itself, with x = z; a saddle is always rotated.

    Args:
        kind: `rosenbrock`, `rastrigin`, `ackley`, `styblinski_tang`, `levy` or `saddle`, as the functions of this
            module say.
        dim: Number of coordinates n, >= 1; >= 2 for `rosenbrock`.
        start: Half-width of the box of starts, > 0; None is 2.048, 5.12, 5, 5, 10 and 0.1.
        rotate: Whether Q is a random rotation or reflection; it is the identity otherwise.
        shift: c ~ N(0, shift²), >= 0.
        log_scale: ln s ~ U(-log_scale, log_scale), >= 0: units of x.
        log_height: ln h ~ U(-log_height, log_height), >= 0: units of f.
        curvature: Of a saddle: |λ| is log-uniform in [1 / curvature, 1], >= 1; each sign is random, and the first
            one negative.
        noise: Standard deviation, >= 0, of a normal noise that is added to z anew in each step (0: none). So losses
            stay >= 0.
        name: Name in tables and folders; the default is the kind.

    Raises:
        ValueError: If an argument is out of range.

    Reference: Jamil and Yang 2013, "A literature survey of benchmark functions for global optimisation problems".
    """

    problem_type = LandscapeProblem

    def __init__(
        self,
        kind: str = "rastrigin",
        dim: int = 10,
        *,
        start: float | None = None,
        rotate: bool = False,
        shift: float = 0.0,
        log_scale: float = 0.0,
        log_height: float = 0.0,
        curvature: float = 10.0,
        noise: float = 0.0,
        name: str | None = None,
    ):
        function = FUNCTIONS[one_of("task.kind", kind, FUNCTIONS)]
        at_least("task.dim", dim, function.min_dim, f"number of coordinates of {kind}")
        self.start = function.start if start is None else number("task.start", start, above=0)
        for key, value in (("shift", shift), ("log_scale", log_scale), ("log_height", log_height), ("noise", noise)):
            number(f"task.{key}", value, minimum=0)
        number("task.curvature", curvature, minimum=1)
        self.kind, self.dim, self.rotate = kind, dim, rotate
        self.shift, self.log_scale, self.log_height = shift, log_scale, log_height
        self.curvature, self.noise, self.name = curvature, noise, kind if name is None else name

    def coordinates(self, generator: np.random.Generator) -> tuple[np.ndarray, ...]:
        """x₀ `(n,)`, Q `(n, n)`, c, λ `(n,)`, s and h `(1,)`; each option leaves the other draws as they are."""
        n = self.dim
        z, scale, height = generator.uniform(-1, 1, n), generator.uniform(-1, 1, 1), generator.uniform(-1, 1, 1)
        signs, sizes = generator.choice([-1.0, 1.0], n), generator.uniform(0, 1, n)
        signs[0] = -1
        center, matrix = generator.standard_normal(n), generator.standard_normal((n, n))
        rotation = np.linalg.qr(matrix)[0] if self.rotate or self.kind == "saddle" else np.eye(n)
        scale, height = np.exp(scale * self.log_scale), np.exp(height * self.log_height)
        x = self.shift * center + rotation.T @ (self.start * z) / scale
        return x, rotation, self.shift * center, signs * self.curvature**-sizes, scale, height
