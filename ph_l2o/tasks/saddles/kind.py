"""What a kind of saddle has to say: its options, its random numbers, and its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ph_l2o.checks import at_least

Curvature = float | Sequence[float] | None


@dataclass(frozen=True)
class Kind(ABC):
    """A function with a known saddle, whose minimum is 0.

    A subclass has its options as fields, with their defaults, and checks them in `__post_init__`.

    Args:
        dim: Number of coordinates, >= 2; of matrices their rows and columns.
        distance: Of the start from the saddle, > 0.
        curvature: γ > 0, the smallest eigenvalue of the Hessian at the saddle being -γ, or [low, high] for a
            log-uniform draw; None: it is the kind's own.
    """

    dim: int = 10
    distance: float = 1e-3
    curvature: Curvature = 0.01

    def __post_init__(self) -> None:
        at_least("task.dim", self.dim, 2, "number of coordinates, or rows of a matrix")

    @property
    def turns(self) -> bool:
        """Whether it is a function of one vector, whose coordinates can be rotated."""
        return True

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors of a problem."""
        return {"x": (self.dim,)}

    @abstractmethod
    def draw(self, generator: np.random.Generator, curvature: float) -> tuple[np.ndarray, ...]:
        """The saddle, `(N,)`, and what else the loss of one problem needs."""

    def last_saddle(self, saddle: np.ndarray) -> np.ndarray:
        """The saddle that has to be escaped, for a kind with a chain of them that begins at `saddle`; both `(N,)`."""
        return saddle

    @abstractmethod
    def loss(self, x: Tensor, curvature: Tensor, *drawn: Tensor) -> Tensor:
        """Losses `(B,)`, >= 0 by rounding too, at `(B, N)`, for γ `(B,)` and what `draw` gave, `(B, …)`."""


def geometric(count: int, condition_number: float) -> np.ndarray:
    """Positive curvatures from 1 down to 1 / condition_number, in a geometric sequence."""
    return condition_number ** -np.linspace(0, 1, count)
