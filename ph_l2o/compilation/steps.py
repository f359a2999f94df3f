"""The whole inner step, compiled: inner gradient and update in one graph, one for each kind of problem."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import functional_call

from ph_l2o.compilation.graphs import Differentiable, compile_differentiable
from ph_l2o.compilation.kinds import Pieces, Step, StepKinds, Structure, drawn_tensors, traced_value_and_gradient
from ph_l2o.estimators.directions import join, split
from ph_l2o.estimators.estimator import Estimate
from ph_l2o.inner import Carry, value_and_gradient
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.tasks.task import Problem


class CompiledSteps:
    """Windows of compiled inner steps with their meta-gradient.

    Args:
        order: Order of the meta-gradient, 1 or 2, as for `Truncated`.
    """

    whole: ClassVar[bool] = True

    def __init__(self, order: int):
        self.kinds: StepKinds[Differentiable] = StepKinds(lambda *parts: _compiled(*parts, order=order))

    def window(
        self,
        optimizer: LearnedOptimizer,
        phi: Mapping[str, Tensor],
        problem: Problem,
        carry: Carry,
        batches: Iterable[Any],
        objective: Callable[[Tensor], Tensor],
    ) -> Estimate:
        """Unroll one step for each batch but the last, which is for the loss at the end.

        Raises:
            CompileError: If the step cannot be compiled.
        """
        flat = join(phi)
        carry = carry.detach()
        structure, held = Structure(carry), self.kinds.closure(problem).tensors
        pieces = structure.apart(carry)
        step: Differentiable | None = None
        losses: list[Tensor] = []
        kept: list[Sequence[Tensor]] = []
        with torch.no_grad():
            *before, at_end = batches
            for batch in before:
                drawn = drawn_tensors(batch)
                if step is None:
                    step = self.kinds.of(optimizer, phi, problem, structure, pieces, batch)
                (*smooth, loss), rest, residuals = step.forward([flat, *pieces.smooth, *pieces.rest, *held, *drawn])
                pieces = Pieces(smooth, list(rest))
                losses.append(loss)
                kept.append(residuals)
        carry = structure.together(pieces)
        last, slope, _ = value_and_gradient(problem, carry.params, carry.buffers, at_end)
        after = torch.stack([*losses[1:], last])
        outer, weights = value_and_weights(objective, after)
        assert step is not None
        return Estimate(outer, split(_backward(step, kept, pieces, weights, slope.flat), phi), carry, after)


def value_and_weights(objective: Callable[[Tensor], Tensor], losses: Tensor) -> tuple[Tensor, Tensor]:
    """The outer loss, and its slope in each loss, `(K, B)`."""
    with torch.enable_grad():
        losses = losses.detach().requires_grad_()
        outer = objective(losses)
        (weights,) = torch.autograd.grad(outer, losses)
    return outer.detach(), weights


@torch.no_grad()
def _backward(
    step: Differentiable, kept: list[Sequence[Tensor]], pieces: Pieces, weights: Tensor, slope: Tensor
) -> Tensor:
    cotangents = [weights[-1][:, None] * slope, *(torch.zeros_like(x) for x in pieces.smooth[1:])]
    of_losses = [torch.zeros_like(weights[0]), *weights[:-1].unbind()]
    total: Tensor | None = None
    for of_loss in reversed(of_losses):
        # What a step kept is freed as soon as it is used.
        of_phi, *cotangents = step.backward(kept.pop(), [*cotangents, of_loss])
        total = of_phi if total is None else total.add_(of_phi)
    assert total is not None
    return total


def _compiled(
    step: Step, phi: Mapping[str, Tensor], pieces: Pieces, others: list[Tensor], *, order: int
) -> Differentiable:
    """The step with all meta-parameters in one vector; the loss is the last of its outputs."""

    def function(inputs: list[Tensor], constants: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        flat, *smooth = inputs
        rest, problem, batch = step.given(constants)
        carry = step.structure.together(Pieces(smooth, rest))
        params = carry.params

        at = params.flat if order == 2 else params.flat.detach()
        loss, slope, buffers = traced_value_and_gradient(problem, params.like(at), carry.buffers, batch)
        if order == 1:
            slope, loss = slope.detach(), loss.detach()
        new, state = functional_call(step.optimizer, split(flat, phi), (params, params.like(slope), loss, carry.state))
        if order == 1:
            loss = loss + ((params.flat - at) * slope).sum(1)  # the same value, with the gradient as its slope
        after = step.structure.apart(Carry(new, state, buffers))
        return [*after.smooth, loss], after.rest

    return compile_differentiable(function, [join(phi), *pieces.smooth], [*pieces.rest, *others])
