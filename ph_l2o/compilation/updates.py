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
from ph_l2o.estimators.directions import join, split
from ph_l2o.estimators.estimator import Estimate
from ph_l2o.inner import Carry, value_and_gradient
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.params import Params
from ph_l2o.tasks.task import Problem


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
        amplification: As for `Truncated`.
        eager: Nothing is compiled after all: the same windows, with the update as it is.
    """

    whole: ClassVar[bool] = False

    def __init__(self, order: int, amplification: float | None = None, *, eager: bool = False):
        self.order, self.amplification, self.eager = order, amplification, eager
        self.kinds = UpdateKinds(_compiled)

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
        buffers = carry.buffers
        padding = Plain(carry.params.layout) if self.eager else self.kinds.padding(optimizer, carry)
        carry = padding.spread(carry)
        structure = Structure(carry)
        pieces = structure.apart(carry)
        update = (
            _Eager(_function(optimizer, phi, padding.example(structure, pieces)), 3 + len(pieces.smooth))
            if self.eager
            else self.kinds.of(optimizer, phi, padding, structure, pieces)
        )
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
        total = self._backward(update, done, cotangents, weights, padding, packed=structure.packs_numbers)
        return Estimate(outer, split(total, phi), carry, after)

    def _backward(
        self,
        update: Differentiable | _Eager,
        done: list[_Done],
        cotangents: list[Tensor],
        weights: Tensor,
        padding: Plain,
        *,
        packed: bool,
    ) -> Tensor:
        total: Tensor | None = None
        put_in = cotangents[0].norm(dim=1)
        while done:
            step = done.pop()  # what it kept is freed as soon as it is used
            with torch.no_grad():
                if self.amplification is not None:
                    cotangents = _limited(cotangents, self.amplification * put_in, packed=packed)
                of_phi, direct, *of_state, of_gradient, of_loss = update.backward(step.kept, cotangents)
                total = of_phi if total is None else total.add_(of_phi)
            if not done:
                break
            weight = weights[len(done) - 1]
            put_in = put_in + weight.abs() * step.gradient.detach().norm(dim=1)
            if self.order == 2:
                slopes = (of_loss + weight, padding.gather_row(of_gradient))
                (through,) = torch.autograd.grad((step.loss, step.gradient), step.at, slopes)
            else:
                through = weight[:, None] * step.gradient
            cotangents = [direct + padding.spread_row(through), *of_state]
        assert total is not None
        return total


def _limited(cotangents: list[Tensor], most: Tensor, *, packed: bool) -> list[Tensor]:
    """Each problem's cotangents, scaled down so that those of its parameters have at most this norm.

    With `packed` the problems are the columns of the last tensor, see `Structure`.
    """
    norm = cotangents[0].norm(dim=1)
    factor = torch.where(norm > most, most / norm, 1.0)
    if bool((factor == 1).all()):
        return cotangents
    factor = torch.where(torch.isfinite(norm), factor, 0.0)
    *rows, last = cotangents
    if not packed:
        rows.append(last)
    scaled = [x * factor.view(-1, *[1] * (x.dim() - 1)) for x in rows]
    if packed:
        scaled.append(last * factor)
    return [torch.where(torch.isfinite(x), x, 0.0) for x in scaled]


class _Eager:
    """An update that keeps its graph, with the two calls of a `Differentiable`."""

    def __init__(self, function: Callable[[list[Tensor], list[Tensor]], Any], num_inputs: int):
        self._function, self._count = function, num_inputs

    def forward(self, tensors: list[Tensor]) -> tuple[list[Tensor], list[Tensor], Tensors]:
        """New state, and the graph."""
        inputs = [x.detach().requires_grad_() for x in tensors[: self._count]]
        with torch.enable_grad():
            smooth, rest = self._function(inputs, tensors[self._count :])
        return [x.detach() for x in smooth], [x.detach() for x in rest], [*inputs, *smooth]

    def backward(self, kept: Tensors, cotangents: list[Tensor]) -> list[Tensor]:
        """Cotangents of the inputs."""
        inputs, smooth = kept[: self._count], kept[self._count :]
        pairs = [(x, c) for x, c in zip(smooth, cotangents, strict=True) if x.requires_grad]
        found = torch.autograd.grad([x for x, _ in pairs], inputs, [c for _, c in pairs], allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def _function(
    optimizer: LearnedOptimizer, phi: Mapping[str, Tensor], example: Example
) -> Callable[[list[Tensor], list[Tensor]], tuple[list[Tensor], list[Tensor]]]:
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

    return function


def _compiled(optimizer: LearnedOptimizer, phi: Mapping[str, Tensor], example: Example) -> Differentiable:
    theta = example.pieces.smooth[0]  # an example of a gradient too
    inputs = [join(phi), *example.pieces.smooth, theta, theta[:, 0].contiguous()]
    constants = [*example.pieces.rest, *example.constants]
    function = _function(optimizer, phi, example)
    return compile_differentiable(function, inputs, constants, any_sizes=example.any_sizes)
