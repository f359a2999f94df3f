"""The octopus: a chain of saddles on which gradient descent takes a time exponential in the dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ph_l2o.tasks.saddles.kind import Curvature, Kind

_L = 1.0
_TAU = math.e


@dataclass(frozen=True)
class Octopus(Kind):
    """The function of Du et al. 2017 (appendix B), with its constants L = 1, τ = e, and γ̂ = γ / 2.

    Coordinate after coordinate has to leave |x_i| ≤ τ, where the loss is -γ̂ x_i², for its minimum at 4τ; only then
    does the next one feel negative curvature, and until then L x² drives it to 0. With h(x) = -γ̂ x² up to τ,
    g₁(|x|) up to 2τ and L (|x| - 4τ)² - ν beyond, a step s from 0 at τ to 1 at 2τ, and V_{d+1} = 0,

        f = d ν + V₁,   V_i = h(x_i) + (1 - s(x_i)) L Σ_{j>i} x_j² + s(x_i) V_{i+1}.

    On the tubes where the paper defines it, f is the paper's function, whose g₂ is L - (L + γ̂) s; elsewhere it goes on
    with two continuous derivatives, which the paper leaves to an extension theorem. The paper's γ̂ and L are factors of
    squares, so that Hessians have twice as much.

    The saddle that has to be escaped is the last one, (4τ, …, 4τ, 0), of value ν = τ² (37 L + 13 γ̂) / 6; the start is
    near the first one, 0. Minima of 0: all |x_i| = 4τ.

    Args:
        curvature: γ = 2 γ̂; the paper has γ̂ = 1.

    Reference: Du, Jin, Lee, Jordan, Poczos and Singh 2017, "Gradient descent can take exponential time to escape saddle
    points", arXiv 1705.10412.
    """

    distance: float = 1.0
    curvature: Curvature = 2.0

    def height(self, curvature: Tensor) -> Tensor:
        """ν, by how much each coordinate lowers the loss."""
        return _TAU**2 * (37 * _L + 6.5 * curvature) / 6

    def draw(self, generator: np.random.Generator, curvature: float) -> tuple[np.ndarray, ...]:
        return (np.zeros(self.dim),)

    def last_saddle(self, saddle: np.ndarray) -> np.ndarray:
        return np.where(np.arange(self.dim) < self.dim - 1, 4 * _TAU, saddle)

    def loss(self, x: Tensor, curvature: Tensor, *drawn: Tensor) -> Tensor:
        half, size = 0.5 * curvature[:, None], x.abs()
        nu = self.height(curvature)[:, None]
        t = size / _TAU - 1  # 0 at τ, 1 at 2τ
        inside = -half * x.square()
        turn = inside + _TAU**2 * t**3 * ((10 * half - 14 * _L) / 3 + (5 * _L - 3 * half) / 2 * t)
        beyond = _L * (size - 4 * _TAU).square()
        lowered = torch.where(t <= 0, inside + nu, torch.where(t <= 1, turn + nu, beyond))
        t = t.clamp(0, 1)
        step = t**3 * (10 - 15 * t + 6 * t * t)
        value = waiting = torch.zeros_like(x[:, 0])
        for i in reversed(range(self.dim)):  # V_i + (d - i + 1) ν, a sum of terms that are not negative
            value = lowered[:, i] + (1 - step[:, i]) * waiting + step[:, i] * value
            waiting = waiting + _L * x[:, i].square() + nu[:, 0]
        return value
