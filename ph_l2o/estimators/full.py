"""Back-propagation through a whole episode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from ph_l2o.estimators.estimator import Estimate
from ph_l2o.estimators.objectives import Objective
from ph_l2o.estimators.truncated import Truncated
from ph_l2o.inner import Carry
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.tasks.task import Problem


class Full(Truncated):
    """The gradient of the outer loss of a whole episode: one window, as long as the horizon.

    With order 2 it is exact, so it has neither the bias of a truncation nor the variance of random perturbations; but
    its memory grows with the horizon, there is one outer step for each episode, and where the inner loop is chaotic
    the exact gradient explodes (Metz et al. 2019, "Understanding and correcting pathologies in the training of learned
    optimizers").

    Args:
        truncation: Inner steps of the episode, >= 1, for use outside of meta-training; there, each episode's horizon
            takes its place.
        order: 1 or 2, as for `Truncated`.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, truncation: int | None = None, *, order: Literal[1, 2] = 2):
        super().__init__(1 if truncation is None else truncation, order=order)
        self._is_whole = truncation is not None

    def for_horizon(self, horizon: int) -> Full:
        """The same with one window of `horizon` inner steps."""
        whole = Full(horizon, order=self.order)
        whole.compiled = self.compiled
        return whole

    def __call__(
        self,
        optimizer: LearnedOptimizer,
        phi: Mapping[str, Tensor],
        problem: Problem,
        carry: Carry,
        first: int,
        objective: Objective,
    ) -> Estimate:
        """See `Estimator.__call__`."""
        if not self._is_whole:
            raise ValueError("estimator.truncation=None: must be the episode's horizon outside of meta-training")
        return super().__call__(optimizer, phi, problem, carry, first, objective)
