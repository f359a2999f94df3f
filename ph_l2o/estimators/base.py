"""The interface of meta-gradient estimators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from ph_l2o.estimators.objectives import Objective
from ph_l2o.inner import Carry
from ph_l2o.optimizers.base import LearnedOptimizer
from ph_l2o.tasks.base import Problem


class Estimate(NamedTuple):
    """What an estimator returns for one truncation window.

    Attributes:
        outer_loss: The objective over the window, shape `()`.
        gradient: The meta-gradient, by the names of the optimizer's parameters.
        carry: Where the next window starts, without a graph.
        losses: Losses after each inner step of the window, shape `(K, B)`, without a graph.
    """

    outer_loss: Tensor
    gradient: dict[str, Tensor]
    carry: Carry
    losses: Tensor


class Estimator(ABC):
    """Estimates the gradient of an outer loss in the meta-parameters from one truncation window.

    Args:
        truncation: Inner steps of a window, K >= 1.
    """

    def __init__(self, truncation: int):
        if truncation < 1:
            raise ValueError(f"estimator.truncation={truncation}: must be >= 1 (inner steps of a window)")
        self.truncation = truncation

    @abstractmethod
    def __call__(
        self,
        optimizer: LearnedOptimizer,
        phi: Mapping[str, Tensor],
        problem: Problem,
        carry: Carry,
        first: int,
        objective: Objective,
    ) -> Estimate:
        """Unroll one window.

        Args:
            optimizer: The learned optimizer.
            phi: Its meta-parameters φ, by name.
            problem: The optimizees.
            carry: Where the window starts.
            first: Number of the window's first inner step; the random draws depend on it.
            objective: The outer loss, a function of losses `(K, B)`.
        """
