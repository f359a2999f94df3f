"""Strict saddles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ph_l2o.checks import at_least, number
from ph_l2o.tasks.saddles.kind import Curvature, Kind, geometric


@dataclass(frozen=True)
class StrictSaddle(Kind):
    """Σ_{i ≤ m} ¼ γ (z_i² - 1)² + Σ_{i > m} ½ λ_i z_i²: a saddle of value ¼ γ m at 0, minima 0 at z_i = ±1, i ≤ m.

    At the saddle the Hessian's eigenvalues are -γ, m times, and the λ. How far the minima are does not depend on γ.

    Args:
        curvature: γ; the default is a range, on which an optimizer can be trained.
        directions: m, in [1, dim - 1].
        condition_number: λ falls from 1 to 1 / condition_number in a geometric sequence; >= 1.

    Reference: Ge, Huang, Jin and Yuan 2015, "Escaping from saddle points" (the name).
    """

    curvature: Curvature = (3e-4, 0.3)
    directions: int = 1
    condition_number: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("task.directions", self.directions, 1, "of negative curvature")
        if self.directions >= self.dim:
            raise ValueError(f"task.directions={self.directions}: must be below task.dim={self.dim}")
        number("task.condition_number", self.condition_number, minimum=1, meaning="of the positive curvatures")

    def draw(self, generator: np.random.Generator, curvature: float) -> tuple[np.ndarray, ...]:
        return np.zeros(self.dim), geometric(self.dim - self.directions, self.condition_number)

    def loss(self, x: Tensor, curvature: Tensor, *drawn: Tensor) -> Tensor:
        down, rest = x[:, : self.directions], x[:, self.directions :]
        return 0.25 * curvature * (down.square() - 1).square().sum(1) + 0.5 * (drawn[0] * rest.square()).sum(1)
