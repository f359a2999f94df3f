"""Monkey saddles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ph_l2o.checks import number
from ph_l2o.tasks.saddles.kind import Kind, geometric


@dataclass(frozen=True)
class MonkeySaddle(Kind):
    """γ (r³ cos 3φ + ¾ r⁴ + ¼) + Σ ½ λ_i z_i² in polar coordinates of the first two, r³ cos 3φ = x³ - 3xy².

    The saddle at 0 has the value ¼ γ. Its Hessian is 0 in the plane: three valleys go down from it, with no negative
    curvature, and gradients there are of second order in the distance. Minima of 0 lie at r = 1, φ = π/3, π, 5π/3.
    With w = (x + iy)², the plane's part is γ (½ |w + x - iy|² + ¼ (r² - 1)²), which cannot be negative by rounding.

    Args:
        curvature: γ, the height of the plane's part.
        condition_number: λ falls from 1 to 1 / condition_number in a geometric sequence; >= 1.
    """

    distance: float = 1e-2
    condition_number: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        number("task.condition_number", self.condition_number, minimum=1, meaning="of the positive curvatures")

    def draw(self, generator: np.random.Generator, curvature: float) -> tuple[np.ndarray, ...]:
        return np.zeros(self.dim), geometric(self.dim - 2, self.condition_number)

    def loss(self, x: Tensor, curvature: Tensor, *drawn: Tensor) -> Tensor:
        a, b, rest = x[:, 0], x[:, 1], x[:, 2:]
        real, imaginary = a * a - b * b + a, 2 * a * b - b
        plane = 0.5 * (real.square() + imaginary.square()) + 0.25 * (a * a + b * b - 1).square()
        return curvature * plane + 0.5 * (drawn[0] * rest.square()).sum(1)
