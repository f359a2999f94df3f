"""Who runs the inner steps of a window: the interface between the estimators and what they need to have done.

An estimator is an algorithm over inner steps; it does not know whether these run eagerly or compiled. An executor gives
it the steps of a window, in one of two kinds: steps that can be taken back (`Tape`), and steps of many perturbed
optimizers at once without derivative. The carry has whatever form is fastest for the executor (`start`, `step`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import islice
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor

from ph_l2o.inner.carry import Carry
from ph_l2o.inner.loop import unroll
from ph_l2o.inner.window import Window

C = TypeVar("C")
Order = Literal[1, 2]
Cotangents = Sequence[Tensor | None]


class Steps(ABC, Generic[C]):
    """The inner steps of a window.

    Args:
        window: The window.

    Attributes:
        window: The same.
        start: Where it starts, in the form that `step` takes.
    """

    start: C

    def __init__(self, window: Window):
        self.window = window

    @abstractmethod
    def step(self, carry: C, batch: Any) -> tuple[C, Tensor]:
        """The next carry, and the losses before the step, without a graph."""

    @abstractmethod
    def last_loss(self, carry: C, batch: Any) -> Tensor:
        """The losses after the last step, without a graph."""

    @abstractmethod
    def plain(self, carry: C) -> Carry:
        """A carry as the next window takes it, without a graph."""

    @torch.no_grad()
    def unroll(self) -> tuple[Carry, Tensor]:
        """The whole window: the last carry, and the losses `(K, …)` after each step."""
        window = self.window
        batches = iter(window.problem.batches(window.first, window.count + 1))
        carry, losses = unroll(self.step, self.start, islice(batches, window.count))
        losses.append(self.last_loss(carry, next(batches)))
        return self.plain(carry), torch.stack(losses[1:])


class Tape(Steps[C]):
    """Inner steps that keep what their derivative needs, to be taken back one by one after `unroll`.

    Cotangents, derivatives of the outer loss, are those of the carry's tensors: the parameters' first, `(B, …)` in the
    executor's form; all have the problem axis in front. None stands for zeros.
    """

    @abstractmethod
    def back(self, cotangents: Cotangents, of_loss: Tensor) -> Cotangents:
        """Take back the last step that has not been; first of all `last_loss`, which leaves no carry.

        Args:
            cotangents: Of the carry that the step left, as the last call returned them, or others if the tape is
                stepwise; none for `last_loss`.
            of_loss: Cotangents of the losses before the step, `(B,)`.

        Returns:
            Cotangents of the carry that it started from; none for the window's first step, whose carry is constant, and
            none if the tape takes all steps back at once.
        """

    @abstractmethod
    def gradient_norms(self) -> Tensor:
        """Norms `(B,)` of the inner gradients of the step that is taken back next, if the tape is stepwise."""

    @abstractmethod
    def gradient(self) -> dict[str, Tensor]:
        """Derivative of the outer loss in the meta-parameters by name, through all steps that were taken back."""


class Executor(ABC):
    """Runs the inner steps of windows. It keeps nothing that changes a result."""

    @abstractmethod
    def tape(self, window: Window, *, order: Order, stepwise: bool = False) -> Tape[Any]:
        """Steps that can be taken back.

        Args:
            window: The window; its carry is constant.
            order: 2 differentiates through inner gradients, 1 holds them constant.
            stepwise: Whether cotangents and norms of inner gradients are looked at between steps; otherwise the tape
                may take all steps back at once.

        Raises:
            CompileError: If the executor cannot run these steps.
        """

    @abstractmethod
    def particles(self, window: Window) -> Steps[Any]:
        """Steps of many perturbed optimizers ("particles") on the same problems, without derivative.

        Args:
            window: The window, with a particle axis P in front of all tensors of its carry, `(P, B, …)`, and of its
                meta-parameters: `(P, 1, *shape)`, or `(P, B, *shape)` if they differ between problems.

        Raises:
            CompileError: If the executor cannot run these steps.
        """
