"""The whole inner step, compiled: inner gradient and update in one function, one for each kind of problem."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.func import grad

from ph_l2o.compilation.carries import CarrySpec, FlatCarry, shapes
from ph_l2o.compilation.closure import Closure, Same
from ph_l2o.compilation.compilations import Compilations
from ph_l2o.compilation.functions import Differentiable, Tensors, compile_differentiable, compile_function
from ph_l2o.compilation.tapes import Bind, RowTape, full, particles_update, row_update
from ph_l2o.errors import CompileError
from ph_l2o.inner import Carry, Steps, Window, value_and_gradient
from ph_l2o.inner.executor import Cotangents, Order
from ph_l2o.inner.particles import Particles
from ph_l2o.params import Params
from ph_l2o.tasks.task import Buffers, Problem


class Inputs(NamedTuple):
    """What a compiled step takes besides meta-parameters, and how to find its way.

    Attributes:
        spec: Of the carry.
        closure: The tensors that the problem holds.
        batch: How what is drawn for a step is put together; None if nothing is.
    """

    spec: CarrySpec
    closure: Closure
    batch: Any

    def constants(self, tensors: list[Tensor]) -> tuple[list[Tensor], Problem, Any]:
        """The carry's rest, the problem and the batch from tensors in this order."""
        end = len(tensors) - (0 if self.batch is None else self.batch.num_leaves)
        begin = end - len(self.closure.tensors)
        problem = self.closure.rebuilt(tensors[begin:end])
        return (
            tensors[:begin],
            problem,
            None if self.batch is None else pytree.tree_unflatten(tensors[end:], self.batch),
        )


class StepCompiler:
    """Compiles whole steps.

    Args:
        known: What has been compiled.
    """

    def __init__(self, known: Compilations):
        self._known = known
        self._last: tuple[Problem, Closure] | None = None

    def closure(self, problem: Problem) -> Closure:
        """The tensors that a problem holds."""
        if self._last is None or self._last[0] is not problem:
            self._last = problem, Closure(problem)
        return self._last[1]

    def compiled(
        self, window: Window, spec: CarrySpec, carry: FlatCarry, batch: Any, how: Hashable,
        compile: Callable[[Inputs, list[Tensor]], Any],
    ) -> Any:  # fmt: skip
        """The compiled step of a window, and of all that differ from it in values alone.

        Args:
            window: The window.
            spec: Of its carry.
            carry: An example.
            batch: An example of what is drawn for a step.
            how: What else the step depends on.
            compile: Compiles it, from what it takes and examples of its constants.

        Raises:
            CompileError: If it cannot be compiled.
        """
        closure = self.closure(window.problem)
        drawn, batch_spec = ([], None) if batch is None else pytree.tree_flatten(batch)
        optimizer, layout = window.optimizer, spec.layout
        signature = (
            Same(optimizer), closure.kind, layout, str(batch_spec), tuple(window.phi), how,
            shapes([*window.phi.values(), *carry.smooth, *carry.rest, *drawn]),
        )  # fmt: skip
        inputs, constants = Inputs(spec, closure, batch_spec), [*carry.rest, *closure.tensors, *drawn]
        name = f"{type(optimizer).__name__}'s step on {type(window.problem).__name__}, {layout.numel} coordinates"
        return self._known.get(signature, name, lambda: compile(inputs, constants))


class StepTape(RowTape[FlatCarry]):
    """Compiled steps that can be taken back."""

    def __init__(self, window: Window, compiler: StepCompiler, order: Order, *, gradient_norms: bool):
        super().__init__(window)
        carry = window.carry.detach()
        self._spec, self._compiler = CarrySpec(carry), compiler
        self._held = compiler.closure(window.problem).tensors
        self._order: Order = order
        self._with_norms = gradient_norms
        self.start = self._spec.flatten(carry)
        self._function: Differentiable | None = None
        self._kept: list[tuple[Tensors, Tensor | None]] = []

    def step(self, carry: FlatCarry, batch: Any) -> tuple[FlatCarry, Tensor]:
        drawn = drawn_tensors(batch)
        if self._function is None:
            self._function = self._compiled(carry, batch)
        inputs = [self.phi, *carry.smooth, *carry.rest, *self._held, *drawn]
        (*smooth, loss), rest, kept = self._function.forward(inputs)
        rest = list(rest)
        self._kept.append((kept, rest.pop() if self._with_norms else None))
        return FlatCarry(smooth, rest), loss

    def _compiled(self, carry: FlatCarry, batch: Any) -> Differentiable:
        def compile(inputs: Inputs, constants: list[Tensor]) -> Differentiable:
            if self._order == 2:
                plain = self._spec.unflatten(carry)
                refuse_differentiable_buffers(window.problem, plain, batch)
            function = step_function(inputs, row_update(window), 1, self._order, gradient_norms=self._with_norms)
            return compile_differentiable(function, [self.phi, *carry.smooth], constants)

        window, how = self.window, (self._order, self._with_norms)
        return self._compiler.compiled(window, self._spec, carry, batch, how, compile)

    def last_loss(self, carry: FlatCarry, batch: Any) -> Tensor:
        params, _, buffers = self.plain(carry)
        loss, slope, _ = value_and_gradient(self.window.problem, params, buffers, batch)
        self._slope = slope.flat
        return loss

    def plain(self, carry: FlatCarry) -> Carry:
        return self._spec.unflatten(carry)

    def back(self, cotangents: Cotangents, of_loss: Tensor) -> Cotangents:
        if not cotangents:
            return [of_loss[:, None] * self._slope, *(torch.zeros_like(x) for x in self.start.smooth[1:])]
        assert self._function is not None
        kept, _ = self._kept.pop()  # freed as soon as it is used
        of_phi, *before = self._function.backward(kept, [*full(cotangents, self.start.smooth), of_loss])
        self.add(of_phi)
        return before if self._kept else []

    def gradient_norms(self) -> Tensor:
        norms = self._kept[-1][1]
        assert norms is not None, "not asked for"
        return norms


class ParticleSteps(Steps[FlatCarry]):
    """Compiled steps of particles."""

    def __init__(self, window: Window, compiler: StepCompiler):
        super().__init__(window)
        carry = window.carry.detach()
        self._spec, self._compiler = CarrySpec(carry), compiler
        self._phi, self._held = [p.detach() for p in window.phi.values()], compiler.closure(window.problem).tensors
        self.start = self._spec.flatten(carry)
        self._function: Callable[[Tensors], Tensors] | None = None

    def step(self, carry: FlatCarry, batch: Any) -> tuple[FlatCarry, Tensor]:
        drawn = drawn_tensors(batch)
        if self._function is None:
            self._function = self._compiled(carry, batch)
        found = list(self._function([*self._phi, *carry.smooth, *carry.rest, *self._held, *drawn]))
        count = len(carry.smooth)
        return FlatCarry(found[:count], found[count + 1 :]), found[count]

    def _compiled(self, carry: FlatCarry, batch: Any) -> Callable[[Tensors], Tensors]:
        def compile(inputs: Inputs, constants: list[Tensor]) -> Callable[[Tensors], Tensors]:
            num_phi, num_inputs = len(self._phi), len(self._phi) + len(carry.smooth)
            function = step_function(inputs, particles_update(self.window), num_phi, wrap=Particles)

            def joined(tensors: list[Tensor]) -> list[Tensor]:
                smooth, rest = function(tensors[:num_inputs], tensors[num_inputs:])
                return [*smooth, *rest]

            return compile_function(joined, [*self._phi, *carry.smooth, *constants])

        return self._compiler.compiled(self.window, self._spec, carry, batch, "particles", compile)

    def last_loss(self, carry: FlatCarry, batch: Any) -> Tensor:
        """See `Steps.last_loss`: a whole step for its loss alone, which takes longer if it is not compiled."""
        return self.step(carry, batch)[1]

    def plain(self, carry: FlatCarry) -> Carry:
        return self._spec.unflatten(carry)


def step_function(
    inputs: Inputs, bind: Bind, num_phi: int, order: Order = 2, *, gradient_norms: bool = False,
    wrap: Callable[[Problem], Problem] = lambda problem: problem,
) -> Callable[[list[Tensor], list[Tensor]], tuple[list[Tensor], list[Tensor]]]:  # fmt: skip
    """The inner step as a function of tensors.

    It takes meta-parameters and the carry's smooth tensors; then the carry's rest and other constants. It returns the
    smooth tensors and the losses; then the rest, and the norms of the inner gradients if they are asked for.
    """

    def function(tensors: list[Tensor], constants: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        rest, problem, batch = inputs.constants(constants)
        params, state, buffers = inputs.spec.unflatten(FlatCarry(tensors[num_phi:], rest))
        at = params.flat if order == 2 else params.flat.detach()
        loss, slope, buffers = traced_value_and_gradient(wrap(problem), params.like(at), buffers, batch)
        if order == 1:
            slope, loss = slope.detach(), loss.detach()
        new, state = bind(tensors[:num_phi])(params, params.like(slope), loss, state)
        if order == 1:
            loss = loss + ((params.flat - at) * slope).sum(1)  # the same value, with the gradient as its slope
        after = inputs.spec.flatten(Carry(params.like(new), state, buffers))
        norms = [slope.detach().norm(dim=1)] if gradient_norms else []
        return [*after.smooth, loss], [*after.rest, *norms]

    return function


def traced_value_and_gradient(
    problem: Problem, params: Params, buffers: Buffers, batch: Any
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Losses, their gradients and the next buffers, as `value_and_gradient` in a form that can be traced."""

    def total(theta: Tensor) -> tuple[Tensor, tuple[Tensor, dict[str, Tensor]]]:
        loss, after = problem.loss(params.like(theta), buffers, batch)
        return loss.sum(), (loss, dict(after))

    gradient, (loss, after) = grad(total, has_aux=True)(params.flat)
    return loss, gradient, after


def drawn_tensors(batch: Any) -> list[Tensor]:
    """The tensors of what is drawn for a step, contiguous.

    Raises:
        CompileError: If there are other things in it.
    """
    leaves = [] if batch is None else pytree.tree_leaves(batch)
    if not all(isinstance(x, torch.Tensor) for x in leaves):
        raise CompileError("draws random numbers inside its modules, such as dropout's")
    return [x.contiguous() for x in leaves]


def refuse_differentiable_buffers(problem: Problem, carry: Carry, batch: Any) -> None:
    """Check a problem by one evaluation.

    Raises:
        CompileError: If its buffers are differentiable in its parameters; compiled steps hold them constant.
    """
    if not carry.buffers:
        return
    with torch.enable_grad():
        params = carry.params.like(carry.params.flat.detach().requires_grad_())
        _, buffers = problem.loss(params, carry.buffers, batch)
    check_constant(buffers)


def check_constant(buffers: Buffers) -> None:
    """Raise CompileError for buffers that have a graph."""
    for name, b in buffers.items():
        if b.requires_grad:
            raise CompileError(f"has to do with a buffer that is differentiable in the parameters, {name}")
