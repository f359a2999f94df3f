"""Problems that start near a saddle."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ph_l2o.checks import number, one_of
from ph_l2o.keys import ProblemKeys
from ph_l2o.params import Layout, Params
from ph_l2o.tasks.saddles.kind import Curvature, Kind
from ph_l2o.tasks.saddles.matrix_products import DeepLinearSaddle, FactorisationSaddle
from ph_l2o.tasks.saddles.monkey import MonkeySaddle
from ph_l2o.tasks.saddles.octopus import Octopus
from ph_l2o.tasks.saddles.phase_retrieval import PhaseRetrieval
from ph_l2o.tasks.saddles.strict import StrictSaddle
from ph_l2o.tasks.task import Buffers, Problem, Task, stacked

KINDS: dict[str, type[Kind]] = {
    "strict": StrictSaddle,
    "monkey": MonkeySaddle,
    "octopus": Octopus,
    "deep_linear": DeepLinearSaddle,
    "matrix_factorisation": FactorisationSaddle,
    "phase_retrieval": PhaseRetrieval,
}


class SaddleProblem(Problem):
    """B problems near a saddle.

    Attributes:
        saddle: The one that the start is near to, `(B, N)`.
        last_saddle: The one that has to be escaped, `(B, N)`: of `octopus` the last of the chain, else the same.
        saddle_value: The loss at the last one, `(B,)`.
        curvature: γ, `(B,)`.
        rotation: Q, `(B, N, N)`, or None.
    """

    def __init__(self, task: Saddle, keys: ProblemKeys, *, device: torch.device | str, dtype: torch.dtype):
        self._kind = task.kind_of_saddle()
        drawn = stacked(keys, task.coordinates, device=device, dtype=dtype)
        start, self.saddle, self.last_saddle, rotation, curvature, *self._drawn = drawn
        shapes = self._kind.shapes()
        self.keys, self.params = keys, Params(start, Layout(tuple(shapes), tuple(shapes.values())))
        self.rotation, self.curvature = rotation if task.rotate and self._kind.turns else None, curvature[:, 0]
        self.saddle_value = self.loss(self.params.like(self.last_saddle), {}, None)[0]
        self._share_left = 1 - task.fall

    def loss(self, params: Params, buffers: Buffers, batch: Any) -> tuple[Tensor, Buffers]:
        z = params.flat
        if self.rotation is not None:
            z = (self.rotation @ z[..., None])[..., 0]
        return self._kind.loss(z, self.curvature, *self._drawn), buffers

    def escaped(self, losses: Tensor) -> Tensor:
        """Where losses, `(…, B)`, are below the saddle's value by the share `fall` of it, the minimum being 0."""
        return losses < self._share_left * self.saddle_value


class Saddle(Task):
    """Problems that start at a given distance from a saddle, in a random direction; their minimum is 0.

    Not `Landscape("saddle")`, which has many curvatures, starts anywhere near, and has no test of escape.

    The options that are None are the kind's own; `ph_l2o/tasks/saddles/` has each kind's function and defaults.

    Args:
        kind: `strict`, `monkey`, `octopus`, `deep_linear`, `matrix_factorisation` or `phase_retrieval`.
        dim: Number of coordinates, >= 2; of matrices their rows and columns.
        distance: Of the start from the saddle, > 0.
        curvature: γ > 0: the smallest eigenvalue of the Hessian at the saddle is -γ (of `monkey` and of three or more
            layers it is 0, and γ a height); [low, high]: log-uniform, one for each problem. Not of `phase_retrieval`.
        rotate: Whether coordinates of `strict`, `monkey` and `octopus` are rotated at random; other kinds have random
            bases of their own.
        fall: Of the saddle's value, in (0, 1), by which a loss has to be below it for the saddle to count as escaped.
        directions: Of `strict`: number of directions of negative curvature, >= 1.
        condition_number: Of `strict` and `monkey`: of the positive curvatures, >= 1; the largest is 1.
        depth: Of `deep_linear`: layers, >= 2.
        rank: Of `deep_linear` and `matrix_factorisation`: of the target, >= 1.
        width: Of the same: inner width, >= rank.
        fitted: Of the same: singular values that the saddle has already, >= 0, < rank; 0: the saddle is 0.
        measurements: Of `phase_retrieval`: their number, >= 1; None: the expectation.
        place: Of `phase_retrieval`: `orthogonal` or `zero`, where the saddle is.
        name: Name in tables and folders; the default is `saddle_<kind>`.

    Raises:
        ValueError: If an argument is out of range, or is none of the kind's.
    """

    problem_type = SaddleProblem

    def __init__(
        self,
        kind: str = "strict",
        *,
        dim: int | None = None,
        distance: float | None = None,
        curvature: Curvature = None,
        rotate: bool = True,
        fall: float = 0.5,
        directions: int | None = None,
        condition_number: float | None = None,
        depth: int | None = None,
        rank: int | None = None,
        width: int | None = None,
        fitted: int | None = None,
        measurements: int | None = None,
        place: str | None = None,
        name: str | None = None,
    ):
        made = KINDS[one_of("task.kind", kind, KINDS)]
        options = {
            "dim": dim, "distance": distance, "curvature": curvature, "directions": directions,
            "condition_number": condition_number, "depth": depth, "rank": rank, "width": width, "fitted": fitted,
            "measurements": measurements, "place": place,
        }  # fmt: skip
        known = [field.name for field in dataclasses.fields(made) if field.init]
        given = {key: value for key, value in options.items() if value is not None}
        for key, value in given.items():
            if key not in known:
                text = f"{kind} has no such option, it has {', '.join(known)}; leave it out"
                raise ValueError(f"task.{key}={value}: {text}")
        if not 0 < fall < 1:
            raise ValueError(f"task.fall={fall}: must be in (0, 1) (share of the saddle's value)")
        if "distance" in given:
            number("task.distance", given["distance"], above=0, meaning="of the start from the saddle")
        if "curvature" in given:
            given["curvature"] = _range(given["curvature"])
        self.kind, self.rotate, self.fall, self.name = kind, rotate, fall, f"saddle_{kind}" if name is None else name
        self._kind = made(**given)
        self.options = {key: getattr(self._kind, key) for key in known}

    def kind_of_saddle(self) -> Kind:
        """The kind with its options."""
        return self._kind

    def coordinates(self, generator: np.random.Generator) -> tuple[np.ndarray, ...]:
        """x₀, saddle and last saddle `(N,)`, Q, γ `(1,)`, and the kind's; rotation and γ leave the rest as it is."""
        kind, place = self._kind, generator.uniform()
        low, high = _range(1.0 if kind.curvature is None else kind.curvature)
        curvature = low * (high / low) ** place
        size = sum(math.prod(shape) for shape in kind.shapes().values())
        direction = generator.standard_normal(size)
        rotation = np.eye(1)
        if kind.turns:
            rotation = np.linalg.qr(generator.standard_normal((size, size)))[0]
        saddle, *drawn = kind.draw(generator, curvature)
        start = saddle + kind.distance * direction / np.linalg.norm(direction)
        points = start, saddle, kind.last_saddle(saddle)
        if self.rotate and kind.turns:
            points = tuple(rotation.T @ point for point in points)
        return *points, rotation, np.array([curvature]), *drawn


def _range(curvature: Any) -> tuple[float, float]:
    pair = (curvature, curvature) if isinstance(curvature, int | float) else tuple(curvature)
    if len(pair) != 2 or not 0 < pair[0] <= pair[1] < math.inf:
        raise ValueError(f"task.curvature={curvature}: must be a number > 0, or two of them, low and high")
    return float(pair[0]), float(pair[1])
