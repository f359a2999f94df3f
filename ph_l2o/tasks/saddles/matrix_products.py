"""Products of matrices: deep linear networks and matrix factorisation."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from ph_l2o.checks import at_least
from ph_l2o.tasks.saddles.kind import Curvature, Kind


@dataclass(frozen=True)
class MatrixProduct(Kind):
    """½ ‖W_L ⋯ W_1 - A‖², a deep linear network on white inputs; with L = 2 it is matrix factorisation, ½ ‖UVᵀ - M‖².

    A, of shape `(dim, dim)`, has `fitted` singular values of 1 and `rank - fitted` of γ, in random bases. At the saddle
    the product has the first ones, each layer has singular values 1 for these, and the others are missing; with
    `fitted` = 0 the saddle is 0. Its value is ½ (rank - fitted) γ².

    With two layers it is strict, with the smallest eigenvalue -γ. With more there is no negative curvature (for γ ≤ 1):
    the loss falls with the L-th power of the distance.

    Args:
        curvature: γ, the missing singular values.
        depth: L, >= 2.
        rank: Of A, in [1, dim].
        width: Rows of all W but the last, >= rank.
        fitted: In [0, rank - 1].

    Reference: Kawaguchi 2016, "Deep learning without poor local minima"; Saxe, McClelland and Ganguli 2014.
    """

    depth: int = 3
    rank: int = 1
    width: int = 1
    fitted: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("task.depth", self.depth, 2, "layers")
        at_least("task.rank", self.rank, 1, "of the target")
        at_least("task.width", self.width, 1, "rows of inner layers")
        at_least("task.fitted", self.fitted, 0, "singular values that the saddle has")
        if self.rank > min(self.dim, self.width):
            raise ValueError(f"task.rank={self.rank}: must be <= task.dim={self.dim} and <= task.width={self.width}")
        if self.fitted >= self.rank:
            raise ValueError(f"task.fitted={self.fitted}: must be below task.rank={self.rank}")

    @property
    def turns(self) -> bool:
        return False

    def shapes(self) -> dict[str, tuple[int, ...]]:
        sizes = [self.dim, *[self.width] * (self.depth - 1), self.dim]
        return {f"weight{k}": (sizes[k + 1], sizes[k]) for k in range(self.depth)}

    def draw(self, generator: np.random.Generator, curvature: float) -> tuple[np.ndarray, ...]:
        sizes = [self.dim, *[self.width] * (self.depth - 1), self.dim]
        bases = [np.linalg.qr(generator.standard_normal((n, n)))[0] for n in sizes]
        values = np.where(np.arange(self.rank) < self.fitted, 1.0, curvature)
        target = bases[-1][:, : self.rank] * values @ bases[0][:, : self.rank].T
        parts = [b[:, : self.fitted] for b in bases]
        weights = [(after @ before.T).ravel() for before, after in itertools.pairwise(parts)]
        return np.concatenate(weights), target

    def loss(self, x: Tensor, curvature: Tensor, *drawn: Tensor) -> Tensor:
        (target,) = drawn
        shapes = list(self.shapes().values())
        parts = x.split([a * b for a, b in shapes], 1)
        product, *others = (part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True))
        for weight in others:
            product = weight @ product
        return 0.5 * (product - target).square().sum((1, 2))


@dataclass(frozen=True)
class DeepLinearSaddle(MatrixProduct):
    """A deep linear network near 0, where even the second derivatives are 0 if it has three layers or more."""

    dim: int = 5
    distance: float = 0.1
    curvature: Curvature = 1.0
    depth: int = 3
    rank: int = 2
    width: int = 5


@dataclass(frozen=True)
class FactorisationSaddle(MatrixProduct):
    """Matrix factorisation near a strict saddle, at which one singular value is missing."""

    depth: int = field(default=2, init=False)
    rank: int = 3
    width: int = 3
    fitted: int = 2
