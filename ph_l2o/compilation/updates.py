"""The optimizer's update, compiled, between inner gradients that are not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from ph_l2o.compilation.graphs import Differentiable, Tensors, compile_differentiable
from ph_l2o.compilation.kinds import Pieces, Structure
from ph_l2o.compilation.padding import Example, Plain, UpdateKinds
from ph_l2o.compilation.steps import value_and_weights
from ph_l2o.estimators.base import Estimate
from ph_l2o.estimators.directions import join, split
from ph_l2o.inner import Carry, value_and_gradient
from ph_l2o.optimizers.base import LearnedOptimizer
from ph_l2o.params import Params
from ph_l2o.tasks.base import Problem


class _Done(NamedTuple):
    """What a step leaves for the backward pass."""

    at: Tensor  # parameters, of which loss and gradient have a graph if the order is 2
    loss: Tensor
    gradient: Tensor
    kept: Tensors


class CompiledUpdates:
    """Windows as those of `CompiledSteps`, for any problem.

    An optimizer that `takes_padding` is compiled once for all architectures, others once for each.

    Args:
        order: Order of the meta-gradient, 1 or 2, as for `Truncated`.
    """

    whole: ClassVar[bool] = False

    def __init__(self, order: int):
        self.order = order
        self.kinds: UpdateKinds[Differentiable] = UpdateKinds(_compiled)

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
        flat, carry = join(phi), carry.detach()
        padding, buffers = self.kinds.padding(optimizer, carry), carry.buffers
        carry = padding.spread(carry)
        structure = Structure(carry)
        pieces = structure.apart(carry)
        update = self.kinds.of(optimizer, phi, padding, structure, pieces)
        done: list[_Done] = []
        *before, at_end = batches
        for batch in before:
            at = padding.gather_row(pieces.smooth[0]).detach().requires_grad_()
            loss, grads, buffers = value_and_gradient(
                problem, problem.params.like(at), buffers, batch, create_graph=self.order == 2
            )
            with torch.no_grad():
                inputs = [flat, *pieces.smooth, padding.spread_row(grads.flat.detach()), loss.detach()]
                smooth, rest, kept = update.forward([*inputs, *pieces.rest, *padding.constants])
            done.append(_Done(at, loss, grads.flat, kept))
            pieces = Pieces(list(smooth), list(rest))
            buffers = {name: b.detach() for name, b in buffers.items()}
        carry = padding.gather(structure.together(pieces), buffers)
        last, slope, _ = value_and_gradient(problem, carry.params, carry.buffers, at_end)
        after = torch.stack([*(step.loss.detach() for step in done[1:]), last])
        outer, weights = value_and_weights(objective, after)
        zeros = [torch.zeros_like(x) for x in pieces.smooth[1:]]
        cotangents = [padding.spread_row(weights[-1][:, None] * slope.flat), *zeros]
        total = self._backward(update, done, cotangents, weights, padding)
        return Estimate(outer, split(total, phi), carry, after)

    def _backward(
        self, update: Differentiable, done: list[_Done], cotangents: list[Tensor], weights: Tensor, padding: Plain
    ) -> Tensor:
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
                slopes = (of_loss + weight, padding.gather_row(of_gradient))
                (through,) = torch.autograd.grad((step.loss, step.gradient), step.at, slopes)
            else:
                through = weight[:, None] * step.gradient
            cotangents = [direct + padding.spread_row(through), *of_state]
        assert total is not None
        return total


def _compiled(optimizer: LearnedOptimizer, phi: Mapping[str, Tensor], example: Example) -> Differentiable:
    """The update with all meta-parameters in one vector; gradient and loss are the last of its inputs."""
    structure, num_rest = example.structure, len(example.pieces.rest)

    def function(inputs: list[Tensor], constants: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        flat, *smooth, gradient, loss = inputs
        carry = structure.together(Pieces(smooth, constants[:num_rest]))
        params = Params(carry.params.flat, example.layout(constants[num_rest:]))
        arguments = (params, params.like(gradient), loss, carry.state)
        new, state = functional_call(optimizer, split(flat, phi), arguments)
        after = structure.apart(Carry(new, state, {}))
        return after.smooth, after.rest

    theta = example.pieces.smooth[0]  # an example of a gradient too
    inputs = [join(phi), *example.pieces.smooth, theta, theta[:, 0].contiguous()]
    constants = [*example.pieces.rest, *example.constants]
    return compile_differentiable(function, inputs, constants, any_sizes=example.any_sizes)
