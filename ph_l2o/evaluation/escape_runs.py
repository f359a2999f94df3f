"""How many inner steps an optimizer needs to escape a saddle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ph_l2o.evaluation.estimates import Array
from ph_l2o.evaluation.grid_search import GridSearch, Point
from ph_l2o.evaluation.runner import tiled
from ph_l2o.inner import run
from ph_l2o.keys import ProblemKeys, Split
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.tasks.task import Task

_AT_ONCE = 25  # inner steps between two looks at which problems are still on their saddle


class Escapes(NamedTuple):
    """What became of P problems.

    Attributes:
        steps: Inner steps until the loss first counts as escaped, `(P,)`; ∞ where it never did.
        diverged: Where it never did, and is not finite or above that at the start, booleans `(P,)`.
        left: Share of the loss at the start that was left when it was last looked at, in [0, 1], `(P,)`.
    """

    steps: Array
    diverged: np.ndarray
    left: Array


def count_steps(
    optimizer_of: Callable[[np.ndarray], LearnedOptimizer],
    task: Task,
    indices: Sequence[int],
    *,
    horizon: int,
    seed: int,
    split: Split,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    enough: Callable[[Array], bool] | None = None,
) -> Escapes:
    """Run problems until all have escaped, or for `horizon` steps; those that have leave the batch in time.

    Args:
        optimizer_of: The optimizer for the problems at these places of `indices`, which may have hyperparameters of
            their own.
        task: Of problems with `escaped`.
        indices: Of the problems.
        horizon: Inner steps at most, >= 1.
        seed: Seed of the problems, >= 0.
        split: Their split.
        device: Where to run.
        dtype: Floating-point type of the parameters.
        enough: From the steps so far, ∞ where there are none yet, whether to stop.
    """
    steps, diverged = np.full(len(indices), np.inf), np.zeros(len(indices), bool)
    shares, left = np.ones(len(indices)), np.arange(len(indices))
    problem, optimizer = _batch(task, indices, left, seed, split, device, dtype), optimizer_of(left)
    start = None
    carry, first = None, 0
    while len(left) and first < horizon:
        count = min(_AT_ONCE, horizon - first)
        carry, losses = run(optimizer, problem, count, carry=carry, first=first)
        start = losses[0] if start is None else start
        escaped = problem.escaped(losses) & torch.isfinite(losses)
        found = escaped.any(0).cpu().numpy() & np.isinf(steps[left])
        steps[left[found]] = (first + escaped.int().argmax(0).cpu().numpy())[found]
        diverged[left] = (~torch.isfinite(losses[-1]) | (losses[-1] > start)).cpu().numpy() & np.isinf(steps[left])
        shares[left] = (losses[-1] / start).nan_to_num(1.0).clamp(0, 1).cpu().numpy()
        first += count
        if enough is not None and enough(steps):
            break
        stay = np.isinf(steps[left]) & np.isfinite(losses[-1].cpu().numpy())
        if stay.sum() <= len(left) / 2:
            kept = torch.from_numpy(np.flatnonzero(stay)).to(device)
            left, start, carry = left[stay], start[kept], carry.map(lambda x, kept=kept: x[kept])
            if len(left):
                problem, optimizer = _batch(task, indices, left, seed, split, device, dtype), optimizer_of(left)
    return Escapes(steps, diverged, shares)


def _batch(
    task: Task, indices: Sequence[int], places: np.ndarray, seed: int, split: Split, device: Any, dtype: torch.dtype
) -> Any:
    keys = ProblemKeys(seed, split, 0, [indices[k] for k in places])
    problem = task.sample(keys, device=device, dtype=dtype)
    if not hasattr(problem, "escaped"):
        raise ValueError(f"task={task.name}: its problems have no test of escape; take one such as ph_l2o.tasks.Saddle")
    return problem


def quantile(steps: Array, share: float) -> float:
    """The least number of steps by which this share of the problems had escaped, ∞ if it never had."""
    return float(np.sort(steps)[max(int(np.ceil(share * len(steps))), 1) - 1])


@dataclass
class EscapeSearch(GridSearch):
    """A search whose criterion is the number of steps by which a share of the problems had escaped.

    Points that would need more steps than the best one are not run any longer: they have ∞. Where none gets there, the
    criterion is the horizon, and 1 to 2 more: the mean over problems of the share of the loss that is left.

    Attributes:
        share: Of the problems, in (0, 1]; ½: the median.
    """

    share: float = 0.5

    def try_points(self, points: Iterable[Point]) -> None:
        """See `GridSearch.try_points`."""
        points = [p for p in dict.fromkeys(points) if p not in self.table]
        if not points:
            return
        values = torch.tensor(points, dtype=self.dtype, device=self.device).repeat_interleave(self.num_problems, 0)

        def optimizer_of(places: np.ndarray) -> LearnedOptimizer:
            columns: list[Tensor] = list(values[torch.from_numpy(places).to(values.device)].unbind(1))
            by_name = {k: v.contiguous() for k, v in zip(self.names, columns, strict=True)}
            return self.optimizer.with_hyperparameters(**by_name)

        def times(steps: Array) -> list[float]:
            return [quantile(row, self.share) for row in steps.reshape(-1, self.num_problems)]

        limit = self.horizon
        if self.table and min(self.table.values()) <= self.horizon:
            limit = int(min(self.table.values()))
        found = count_steps(
            optimizer_of, self.task, tiled(self.num_problems, len(points)), horizon=limit, seed=self.seed, split="val",
            device=self.device, dtype=self.dtype, enough=lambda s: bool(np.isfinite(times(s)).any()),
        )  # fmt: skip
        left = found.left.reshape(-1, self.num_problems).mean(1)
        for point, rest, found_time in zip(points, left, times(found.steps), strict=True):
            never = self.horizon + 1 + float(rest) if limit == self.horizon else np.inf
            self.table[point] = found_time if np.isfinite(found_time) else never
