"""An average of the iterates that can be read out at any time, of any optimizer."""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.params import Params

POWER = 8.0  # chosen on validation jobs, see docs/experiments.md


def share(step: Any, power: float = POWER) -> Any:
    """The share of the newest iterate in the average after k = `step` steps, >= 1, a number or element by element."""
    return (power + 1) / (power + step)


class AveragedState(NamedTuple):
    """What an optimizer that averages remembers.

    Attributes:
        step: Steps done, `(B,)`.
        average: Of the iterates, `(B, N)`; before the first step the start.
        inner: The optimizer's own state.
    """

    step: Tensor
    average: Tensor
    inner: Any


class Averaged(LearnedOptimizer):
    """An optimizer that goes its way as it is, with an average of where it has been: what is used in the end.

    After step k = 1, 2, … x̄ ← x̄ + (η + 1) / (η + k) (θ - x̄): an average in which iterate k weighs about as k^η, so
    that most of it is the last 1 / (η + 1) of the run, however long that is. No length need be known.

    Args:
        optimizer: What is averaged; a schedule is inside, `Averaged(Scheduled(…))`.
        power: η, >= 0; 0 is the plain mean.

    Raises:
        ValueError: If `power` is out of range, or the optimizer averages itself.

    Reference: Shamir and Zhang 2013, "Stochastic gradient descent for non-smooth optimization: convergence results and
    optimal averaging schemes" (arXiv 1212.1824), polynomial-decay averaging.
    """

    reads_out: ClassVar[bool] = True
    optimizer: Any

    def __init__(self, optimizer: LearnedOptimizer, *, power: float = POWER):
        super().__init__()
        if not 0 <= power < math.inf:
            raise ValueError(f"optimizer.power={power}: must be >= 0 and finite (of the average)")
        if optimizer.reads_out:
            raise ValueError(f"optimizer.optimizer={type(optimizer).__name__}: averages already; leave it as it is")
        self.optimizer, self.power = optimizer, float(power)
        self.needs_loss, self.takes_padding = optimizer.needs_loss, optimizer.takes_padding  # type: ignore[misc]
        self.compiles_well = optimizer.compiles_well  # type: ignore[misc]

    @property
    def grid(self) -> dict[str, tuple[float, ...]]:
        """Of the optimizer."""
        return self.optimizer.grid

    @property
    def hyperparameters(self) -> dict[str, Tensor]:
        """Of the optimizer."""
        return self.optimizer.hyperparameters

    def with_hyperparameters(self, **values: float | Tensor) -> Self:
        """A copy in which the named hyperparameters have these values; see `ClassicalOptimizer`."""
        new = copy.deepcopy(self)
        new.optimizer = self.optimizer.with_hyperparameters(**values)
        return new

    def init(self, params: Params) -> AveragedState:
        return AveragedState(torch.zeros_like(params.flat[:, 0]), params.flat, self.optimizer.init(params))

    def update(
        self, params: Params, grads: Params, loss: Tensor | None, state: AveragedState
    ) -> tuple[Params, AveragedState]:
        new, inner = self.optimizer.update(params, grads, loss, state.inner)
        step = state.step + 1
        average = torch.lerp(state.average, new.flat, share(step, self.power)[:, None])
        return new, AveragedState(step, average, inner)

    def readout(self, params: Params, state: AveragedState) -> Params:
        """The average."""
        return params.like(state.average)

    def hide_loss(self, state: AveragedState, hidden: Tensor) -> AveragedState:
        return state._replace(inner=self.optimizer.hide_loss(state.inner, hidden))

    def diagnose(self, params: Params, grads: Params, loss: Tensor | None, state: AveragedState) -> dict[str, Tensor]:
        return self.optimizer.diagnose(params, grads, loss, state.inner)
