"""The interface of meta-gradient estimators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from torch import Tensor

from ph_l2o.inner import EAGER, Carry, Executor, Window
from ph_l2o.inner import start as inner_start
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.tasks.task import Problem


class Estimate(NamedTuple):
    """What an estimator returns for one truncation window.

    Attributes:
        outer_loss: The objective over the window, shape `()`.
        gradient: The meta-gradient, by the names of the optimizer's parameters.
        carry: Where the next window starts, without a graph; every tensor has the problem axis B in front.
        losses: Losses after each inner step of the window, shape `(K, B)`, without a graph.
    """

    outer_loss: Tensor
    gradient: dict[str, Tensor]
    carry: Carry
    losses: Tensor


class Estimator(ABC):
    """Estimates the gradient of an outer loss in the meta-parameters from one truncation window.

    It is an algorithm without memory: what it keeps between windows lies in their carry.

    Attributes:
        has_compiled_form: Whether all inner steps are the executor's, so that they can be compiled ones. Otherwise it
            is only called with an eager one.
    """

    has_compiled_form: ClassVar[bool] = False

    @property
    def averages_processes(self) -> bool:
        """Whether the gradient is that of all processes' problems already, so that it need not be averaged."""
        return False

    def window_length(self, truncation: int, horizon: int) -> int:
        """Inner steps of the windows of an episode.

        Args:
            truncation: What meta-training asks for, >= 1.
            horizon: Inner steps of the episode, >= 1.

        Returns:
            The truncation, unless an estimator's windows are of another length.

        Raises:
            ValueError: If an estimator has no windows of that length.
        """
        del horizon
        return truncation

    def start(self, optimizer: LearnedOptimizer, problem: Problem) -> Carry:
        """The carry at the start of an episode.

        An estimator that keeps more between windows puts it into `Carry.state`, a NamedTuple of tensors. All tensors
        of a carry have the problem axis in front, so that checkpoints and processes can share them out.
        """
        return inner_start(optimizer, problem)

    @abstractmethod
    def __call__(self, window: Window, executor: Executor = EAGER) -> Estimate:
        """The estimate of one window, whose inner steps the executor runs."""
