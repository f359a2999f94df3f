"""Truncated back-propagation through the unrolled inner loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ph_l2o.estimators.estimator import Estimate, Estimator
from ph_l2o.estimators.objectives import value_and_weights
from ph_l2o.inner import EAGER, Executor, Tape, Window


class Truncated(Estimator):
    """The gradient of the window's outer loss, with the carry into the window held constant.

    Order 2 differentiates through the inner gradients (exact for the window). Order 1 treats each inner gradient as
    a constant (Andrychowicz et al. 2016, section 2.1): with weights w_t = ∂objective/∂loss_t, its meta-gradient is
    that of the surrogate Σ_t w_t ⟨g_t, θ_t(φ)⟩, which needs no second backward pass. Both are biased for horizons
    longer than the window (Wu et al. 2018, "Understanding short-horizon bias in stochastic meta-optimization").

    Where the inner loop is chaotic, derivatives over many of its steps grow beyond all bounds, and say nothing about
    the outer loss (Metz et al. 2019, "Understanding and correcting pathologies in the training of learned optimizers").
    `amplification` bounds them: on the way back, the derivative in a problem's parameters is scaled down to at most
    this many times the sum of the norms that its losses so far have put in. What does not grow is not changed.

    Args:
        order: 1 or 2.
        amplification: Bound, > 0, or None.
    """

    has_compiled_form: ClassVar[bool] = True

    def __init__(self, *, order: Literal[1, 2] = 2, amplification: float | None = None):
        if amplification is not None and amplification <= 0:
            raise ValueError(f"estimator.amplification={amplification}: must be > 0, or null for no bound")
        self.amplification = amplification
        if order not in (1, 2):
            raise ValueError(f"estimator.order={order}: must be 1 (inner gradients held constant) or 2 (exact)")
        self.order: Literal[1, 2] = order

    def __call__(self, window: Window, executor: Executor = EAGER) -> Estimate:
        tape = executor.tape(window, order=self.order, stepwise=self.amplification is not None)
        carry, losses = tape.unroll()
        outer, weights = value_and_weights(window.objective, losses)
        return Estimate(outer, self._taken_back(tape, weights), carry, losses)

    @torch.no_grad()
    def _taken_back(self, tape: Tape[Any], weights: Tensor) -> dict[str, Tensor]:
        """The reverse sweep: the meta-gradient from the outer loss's slopes in the losses after each step, `(K, B)`."""
        cotangents = tape.back((), weights[-1])
        put_in = None if self.amplification is None else _norms(cotangents)
        of_losses = [torch.zeros_like(weights[0]), *weights[:-1].unbind()]  # before each step; the first does not count
        for weight in reversed(of_losses):
            if self.amplification is not None and put_in is not None:
                cotangents = _limited(cotangents, self.amplification * put_in)
                put_in = put_in + weight.abs() * tape.gradient_norms()
            cotangents = tape.back(cotangents, weight)
        return tape.gradient()


def _norms(cotangents: Sequence[Tensor | None]) -> Tensor:
    """Those of the parameters, for each problem."""
    of_params = cotangents[0]
    assert of_params is not None
    return of_params.norm(dim=1)


def _limited(cotangents: Sequence[Tensor | None], most: Tensor) -> Sequence[Tensor | None]:
    """Each problem's cotangents, scaled down so that those of its parameters have at most this norm."""
    norm = _norms(cotangents)
    factor = torch.where(norm > most, most / norm, 1.0)
    if bool((factor == 1).all()):
        return cotangents
    factor = torch.where(torch.isfinite(norm), factor, 0.0)
    scaled = [None if x is None else x * factor.view(-1, *[1] * (x.dim() - 1)) for x in cotangents]
    return [None if x is None else torch.where(torch.isfinite(x), x, 0.0) for x in scaled]
