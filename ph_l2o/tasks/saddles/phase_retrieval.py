"""Real phase retrieval."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from ph_l2o.checks import at_least, one_of
from ph_l2o.tasks.saddles.kind import Curvature, Kind

PLACES = ("zero", "orthogonal")


@dataclass(frozen=True)
class PhaseRetrieval(Kind):
    """1/(4m) Σ_k ((a_kᵀx)² - (a_kᵀx*)²)² for normal a_k and a random x* of length 1; minima 0 at ±x*.

    In expectation, `measurements: null`, it is ¾ (‖x‖² - 1)² + (‖x‖² - (xᵀx*)²). It has a local maximum of ¾ at 0, with
    the eigenvalues -3 in direction x* and -1, and saddles of ⅔ wherever x ⊥ x* and ‖x‖² = ⅓, with -2 in direction x*,
    2 along x, and 0 else. With finitely many measurements 0 is a critical point still, and the others move.

    Args:
        measurements: m, >= 1; None: the expectation.
        place: The start is near `zero`, or, in expectation, near a random one of the `orthogonal` saddles.

    Reference: Sun, Qu and Wright 2018, "A geometric analysis of phase retrieval"; Chen, Chi, Fan and Ma 2019.
    """

    curvature: Curvature = field(default=None, init=False)
    measurements: int | None = None
    place: str = "orthogonal"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("task.place", self.place, PLACES)
        if self.measurements is not None:
            at_least("task.measurements", self.measurements, 1, "or null, the expectation")
            if self.place != "zero":
                text = "that saddle is known for task.measurements=null alone; set task.place=zero"
                raise ValueError(f"task.place={self.place}: {text}")

    @property
    def turns(self) -> bool:
        return False

    def draw(self, generator: np.random.Generator, curvature: float) -> tuple[np.ndarray, ...]:
        basis = np.linalg.qr(generator.standard_normal((self.dim, 2)))[0].T
        saddle = basis[1] / 3**0.5 if self.place == "orthogonal" else np.zeros(self.dim)
        if self.measurements is None:
            return saddle, basis[0]
        return saddle, basis[0], generator.standard_normal((self.measurements, self.dim))

    def loss(self, x: Tensor, curvature: Tensor, *drawn: Tensor) -> Tensor:
        truth, *vectors = drawn
        if vectors:
            seen, true = ((vectors[0] @ v[..., None])[..., 0].square() for v in (x, truth))
            return 0.25 * (seen - true).square().mean(1)
        along = (x * truth).sum(1, keepdim=True)
        across = (x - along * truth).square().sum(1)
        return 0.75 * (across + along[:, 0].square() - 1).square() + across
