"""One window of inner steps: what a meta-gradient is asked of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from ph_l2o.inner.carry import Carry
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.tasks.task import Problem

Objective = Callable[[Tensor], Tensor]


class Window(NamedTuple):
    """A truncation window.

    Attributes:
        optimizer: The learned optimizer.
        phi: Its meta-parameters φ, by name.
        problem: The optimizees, B of them.
        carry: Where the window starts.
        first: Number of its first inner step; the random draws depend on it.
        count: Inner steps, K >= 1.
        objective: The outer loss, a function of the losses `(K, B)` after each step.
    """

    optimizer: LearnedOptimizer
    phi: Mapping[str, Tensor]
    problem: Problem
    carry: Carry
    first: int
    count: int
    objective: Objective
