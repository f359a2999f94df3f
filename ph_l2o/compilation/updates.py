"""The optimizer's update, compiled, between inner gradients that are not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from ph_l2o.compilation.graphs import Differentiable, Tensors, compile_differentiable
from ph_l2o.compilation.kinds import Kinds, Pieces, Step, Structure
from ph_l2o.compilation.steps import own_parameters, value_and_weights
from ph_l2o.estimators.base import Estimate
from ph_l2o.estimators.directions import join, split
from ph_l2o.inner import Carry, value_and_gradient
from ph_l2o.optimizers.base import LearnedOptimizer
from ph_l2o.tasks.base import Problem


class _Done(NamedTuple):
    """What a step leaves for the backward pass."""

    at: Tensor  # parameters, of which loss and gradient have a graph if the order is 2
    loss: Tensor
    gradient: Tensor
    kept: Tensors


class CompiledUpdates:
    """Windows as those of `CompiledSteps`, for any problem: only its parameters' shapes matter.

    Args:
        order: Order of the meta-gradient, 1 or 2, as for `Truncated`.
    """

    def __init__(self, order: int):
        self.order = order
        self.kinds: Kinds[Differentiable] = Kinds(_compiled, whole=False)

    def window(
        self,
        optimizer: LearnedOptimizer,
        phi: Mapping[str, Tensor],
        problem: Problem,
        carry: Carry,
        batches: Iterable[Any],
        objective: Callable[[Tensor], Tensor],
    ) -> Estimate:
        """See `CompiledSteps.window`."""
        flat = join(phi)
        carry = carry.detach()
        structure, update = Structure(carry), None
        done: list[_Done] = []
        *before, at_end = batches
        for batch in before:
            at = carry.params.flat.detach().requires_grad_()
            loss, grads, buffers = value_and_gradient(
                problem, carry.params.like(at), carry.buffers, batch, create_graph=self.order == 2
            )
            pieces = structure.apart(carry)
            if update is None:
                update = self.kinds.of(optimizer, phi, problem, structure, pieces, None)
            inputs = [flat, *pieces.smooth, grads.flat.detach(), loss.detach()]
            with torch.no_grad():
                smooth, rest, kept = update.forward([*inputs, *pieces.rest])
            done.append(_Done(at, loss, grads.flat, kept))
            carry = structure.together(Pieces(list(smooth), list(rest)))
            carry = Carry(carry.params, carry.state, {name: b.detach() for name, b in buffers.items()})
        last, slope, _ = value_and_gradient(problem, carry.params, carry.buffers, at_end)
        after = torch.stack([*(step.loss.detach() for step in done[1:]), last])
        outer, weights = value_and_weights(objective, after)
        assert update is not None
        zeros = [torch.zeros_like(x) for x in structure.apart(carry).smooth[1:]]
        total = self._backward(update, done, [weights[-1][:, None] * slope.flat, *zeros], weights)
        return Estimate(outer, split(total, phi), carry, after)

    def _backward(self, update: Differentiable, done: list[_Done], cotangents: list[Tensor], weights: Tensor) -> Tensor:
        total: Tensor | None = None
        while done:
            step = done.pop()  # what it kept is freed as soon as it is used
            with torch.no_grad():
                of_phi, direct, *of_state, of_gradient, of_loss = update.backward(step.kept, cotangents)
                total = of_phi if total is None else total.add_(of_phi)
            if not done:
                break
            weight = weights[len(done) - 1]
            if self.order == 2:
                (through,) = torch.autograd.grad((step.loss, step.gradient), step.at, (of_loss + weight, of_gradient))
            else:
                through = weight[:, None] * step.gradient
            cotangents = [direct + through, *of_state]
        assert total is not None
        return total


def _compiled(step: Step, phi: list[Tensor], pieces: Pieces, others: list[Tensor]) -> Differentiable:
    """The update with all meta-parameters in one vector; gradient and loss are the last of its inputs."""
    del others

    def function(inputs: list[Tensor], constants: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        flat, *smooth, gradient, loss = inputs
        carry = step.structure.together(Pieces(smooth, constants))
        arguments = (carry.params, carry.params.like(gradient), loss, carry.state)
        new, state = functional_call(step.optimizer, own_parameters(step, phi, flat), arguments)
        after = step.structure.apart(Carry(new, state, carry.buffers))
        return after.smooth, after.rest

    flat = join(dict(zip(step.names, phi, strict=True)))
    theta = pieces.smooth[0]  # an example of a gradient too
    return compile_differentiable(function, [flat, *pieces.smooth, theta, theta[:, 0].contiguous()], pieces.rest)
