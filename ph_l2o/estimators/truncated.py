"""Truncated back-propagation through the unrolled inner loop."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from ph_l2o.errors import CompileError
from ph_l2o.estimators.estimator import Estimate, Estimator
from ph_l2o.estimators.swap import call_with
from ph_l2o.inner import Carry, Objective, Window, inner_step, value_and_gradient
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.tasks.task import Problem


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

    def compile_steps(self, *, whole: bool = True) -> None:
        """See `Estimator.compile_steps`."""
        from ph_l2o.compilation import CompiledSteps, CompiledUpdates

        if whole and self.amplification is not None:
            raise CompileError("with estimator.amplification cannot be compiled whole")
        self.compiled = CompiledSteps(self.order) if whole else CompiledUpdates(self.order, self.amplification)

    def __call__(self, window: Window) -> Estimate:
        """See `Estimator.__call__`."""
        optimizer, phi, problem, carry, first, count, objective = window
        by_steps = self.compiled
        if by_steps is None and self.amplification is not None:
            from ph_l2o.compilation import CompiledUpdates

            by_steps = CompiledUpdates(self.order, self.amplification, eager=True)
        if by_steps is not None:
            batches = problem.batches(first, count + 1)
            return by_steps.window(optimizer, phi, problem, carry, batches, objective)
        phi = {name: p.detach().requires_grad_() for name, p in phi.items()}
        unroll = _second_order if self.order == 2 else _first_order
        with torch.enable_grad():
            surrogate, losses, carry = call_with(phi, optimizer, unroll, problem, carry, first, count, objective)
            gradients = torch.autograd.grad(surrogate, list(phi.values()), allow_unused=True)
        gradient = {
            name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(phi.items(), gradients, strict=True)
        }
        losses = losses.detach()
        return Estimate(objective(losses), gradient, carry.detach(), losses)


def _second_order(
    optimizer: LearnedOptimizer, problem: Problem, carry: Carry, first: int, count: int, objective: Objective
) -> tuple[Tensor, Tensor, Carry]:
    carry = Carry(carry.params.like(carry.params.flat.detach().requires_grad_()), carry.state, carry.buffers)
    losses: list[Tensor] = []
    batches = problem.batches(first, count + 1)
    for _ in range(count):
        carry, loss = inner_step(optimizer, problem, carry, next(batches), create_graph=True)
        losses.append(loss)
    losses.append(problem.loss(carry.params, carry.buffers, next(batches))[0])
    after = torch.stack(losses[1:])
    return objective(after), after, carry


def _first_order(
    optimizer: LearnedOptimizer, problem: Problem, carry: Carry, first: int, count: int, objective: Objective
) -> tuple[Tensor, Tensor, Carry]:
    losses: list[Tensor] = []
    pairs: list[tuple[Tensor, Tensor]] = []  # θ_t with its graph, g_t without
    for step, batch in enumerate(problem.batches(first, count + 1)):
        loss, grads, buffers = value_and_gradient(problem, carry.params, carry.buffers, batch)
        losses.append(loss)
        pairs.append((carry.params.flat, grads.flat))
        if step < count:
            params, state = optimizer.update(carry.params, grads, loss, carry.state)
            carry = Carry(params, state, buffers)
    after = torch.stack(losses[1:]).requires_grad_()
    (weights,) = torch.autograd.grad(objective(after), after)
    surrogate = sum((w * (g * p).sum(1)).sum() for w, (p, g) in zip(weights, pairs[1:], strict=True))
    assert isinstance(surrogate, Tensor)
    return surrogate, after, carry
