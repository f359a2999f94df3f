"""The whole inner step, compiled: inner gradient and update in one graph, one for each kind of problem."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.func import functional_call, grad

from ph_l2o.compilation.closure import Closure
from ph_l2o.compilation.graphs import CompileError, Differentiable, compile_differentiable, timed
from ph_l2o.inner import Carry, value_and_gradient
from ph_l2o.optimizers.base import LearnedOptimizer
from ph_l2o.params import Params
from ph_l2o.tasks.base import Problem

log = logging.getLogger(__name__)

_MANY = 16  # kinds of problems of one run, after which it is worth saying so


class Window(NamedTuple):
    """What a compiled window of inner steps gives.

    Attributes:
        objective: The outer loss, `()`.
        gradient: The meta-gradient, by name.
        carry: After the last step.
        losses: After each step, `(K, B)`.
    """

    objective: Tensor
    gradient: dict[str, Tensor]
    carry: Carry
    losses: Tensor


class Pieces(NamedTuple):
    """A carry as lists of tensors.

    Attributes:
        smooth: Parameters and the state's floating-point tensors, which derivatives pass.
        rest: The state's other tensors, then buffers.
    """

    smooth: list[Tensor]
    rest: list[Tensor]


class Structure:
    """How a carry is put together, to take it apart and put it together again."""

    def __init__(self, carry: Carry):
        leaves, self.spec = pytree.tree_flatten(carry.state)
        self.is_smooth = [x.is_floating_point() for x in leaves]
        self.buffers = tuple(carry.buffers)
        self.layout = carry.params.layout

    def apart(self, carry: Carry) -> Pieces:
        """The carry's tensors."""
        leaves = pytree.tree_leaves(carry.state)
        smooth = [x for x, s in zip(leaves, self.is_smooth, strict=True) if s]
        rest = [x for x, s in zip(leaves, self.is_smooth, strict=True) if not s]
        return Pieces([carry.params.flat, *smooth], [*rest, *carry.buffers.values()])

    def together(self, pieces: Pieces) -> Carry:
        """The carry of these tensors."""
        (flat, *smooth), rest = pieces.smooth, list(pieces.rest)
        num_rest = len(self.is_smooth) - sum(self.is_smooth)
        smooth_leaves, rest_leaves = iter(smooth), iter(rest[:num_rest])
        leaves = [next(smooth_leaves if s else rest_leaves) for s in self.is_smooth]
        state = pytree.tree_unflatten(leaves, self.spec)
        return Carry(Params(flat, self.layout), state, dict(zip(self.buffers, rest[num_rest:], strict=True)))


class CompiledSteps:
    """Windows of compiled inner steps.

    Args:
        order: Order of the meta-gradient, 1 or 2, as for `Truncated`.
    """

    def __init__(self, order: int):
        self.order = order
        self._known: dict[Hashable, Differentiable] = {}
        self._closure: tuple[Problem, Closure] | None = None

    def window(
        self,
        optimizer: LearnedOptimizer,
        phi: Mapping[str, Tensor],
        problem: Problem,
        carry: Carry,
        batches: Iterable[Any],
        objective: Callable[[Tensor], Tensor],
    ) -> Window:
        """Unroll one step for each batch but the last, which is for the loss at the end.

        Raises:
            CompileError: If the step cannot be compiled.
        """
        flat = torch.cat([p.detach().flatten() for p in phi.values()])
        structure = Structure(carry)
        pieces = structure.apart(carry.detach())
        closure = self._closure_of(problem)
        step: Differentiable | None = None
        losses: list[Tensor] = []
        kept: list[Sequence[Tensor]] = []
        with torch.no_grad():
            *drawn_before, at_end = batches
            for batch in drawn_before:
                drawn = _tensors(batch)
                if step is None:
                    step = self._step(optimizer, phi, problem, closure, structure, pieces, flat, batch)
                arguments = [flat, *pieces.smooth, *pieces.rest, *closure.tensors, *drawn]
                (*smooth, loss), rest, residuals = step.forward(arguments)
                pieces = Pieces(smooth, list(rest))
                losses.append(loss)
                kept.append(residuals)
        carry = structure.together(pieces)
        last, slope, _ = value_and_gradient(problem, carry.params, carry.buffers, at_end)
        after = torch.stack([*losses[1:], last]).requires_grad_()
        with torch.enable_grad():
            outer = objective(after)
            (weights,) = torch.autograd.grad(outer, after)
        assert step is not None
        total = self._backward(step, kept, pieces, weights, slope.flat)
        parts = total.split([p.numel() for p in phi.values()])
        gradient = {name: part.view_as(p) for (name, p), part in zip(phi.items(), parts, strict=True)}
        return Window(outer.detach(), gradient, carry, after.detach())

    @torch.no_grad()
    def _backward(
        self, step: Differentiable, kept: list[Sequence[Tensor]], pieces: Pieces, weights: Tensor, slope: Tensor
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

    def _closure_of(self, problem: Problem) -> Closure:
        if self._closure is None or self._closure[0] is not problem:
            self._closure = problem, Closure(problem)
        return self._closure[1]

    def _step(
        self,
        optimizer: LearnedOptimizer,
        phi: Mapping[str, Tensor],
        problem: Problem,
        closure: Closure,
        structure: Structure,
        pieces: Pieces,
        flat: Tensor,
        batch: Any,
    ) -> Differentiable:
        drawn, spec = ([], None) if batch is None else pytree.tree_flatten(batch)
        tensors = [*pieces.smooth, *pieces.rest, *drawn]
        kind = (
            id(optimizer), closure.kind, structure.layout, str(spec), flat.dtype,
            tuple((tuple(x.shape), x.dtype, x.device) for x in tensors),
        )  # fmt: skip
        if kind not in self._known:
            function = _whole_step(optimizer, phi, problem, closure, structure, len(pieces.rest), spec, self.order)
            kinds = f"{type(optimizer).__name__}'s step on {type(problem).__name__}"
            name = f"{kinds}, {structure.layout.numel} coordinates"
            with timed(name):
                self._known[kind] = compile_differentiable(
                    function, [flat, *pieces.smooth], [*pieces.rest, *closure.tensors, *drawn]
                )
            if len(self._known) == _MANY:
                log.warning(
                    "compile=step: %d kinds of problems so far, each compiled by itself; compile=false may be faster",
                    _MANY,
                )
        return self._known[kind]


def _tensors(batch: Any) -> list[Tensor]:
    leaves = [] if batch is None else pytree.tree_leaves(batch)
    if not all(isinstance(x, Tensor) for x in leaves):
        raise CompileError("draws random numbers inside its modules, such as dropout's")
    return leaves


def _whole_step(
    optimizer: LearnedOptimizer,
    phi: Mapping[str, Tensor],
    problem: Problem,
    closure: Closure,
    structure: Structure,
    num_rest: int,
    spec: Any,
    order: int,
) -> Callable[[list[Tensor], list[Tensor]], tuple[list[Tensor], list[Tensor]]]:
    """One inner step as a function of tensors alone; the loss is the last of its outputs."""
    names, shapes = list(phi), [p.shape for p in phi.values()]
    sizes, num_held = [p.numel() for p in phi.values()], len(closure.tensors)

    def step(inputs: list[Tensor], constants: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        flat, *smooth = inputs
        rest, held = constants[:num_rest], constants[num_rest : num_rest + num_held]
        drawn = constants[num_rest + num_held :]
        parts = zip(names, shapes, flat.split(sizes), strict=True)
        own = {name: part.view(shape) for name, shape, part in parts}
        here = problem if num_held == 0 else closure.rebuilt(held)
        carry = structure.together(Pieces(smooth, rest))
        batch = None if spec is None else pytree.tree_unflatten(drawn, spec)
        params = carry.params

        def total(theta: Tensor) -> tuple[Tensor, tuple[Tensor, dict[str, Tensor]]]:
            loss, buffers = here.loss(params.like(theta), carry.buffers, batch)
            return loss.sum(), (loss, dict(buffers))

        at = params.flat if order == 2 else params.flat.detach()
        slope, (loss, buffers) = grad(total, has_aux=True)(at)
        if order == 1:
            slope, loss = slope.detach(), loss.detach()
        new, state = functional_call(optimizer, own, (params, params.like(slope), loss, carry.state))
        if order == 1:
            loss = loss + ((params.flat - at) * slope).sum(1)  # the same value, with the gradient as its slope
        after = structure.apart(Carry(new, state, buffers))
        return [*after.smooth, loss], after.rest

    return step
