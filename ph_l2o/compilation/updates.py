"""The optimizer's update, compiled, between inner gradients that are not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ph_l2o.compilation.carries import CarrySpec, FlatCarry, shapes
from ph_l2o.compilation.closure import Same
from ph_l2o.compilation.compilations import Compilations
from ph_l2o.compilation.functions import Differentiable, Tensors, compile_differentiable, compile_function
from ph_l2o.compilation.padding import Example, PaddedRows, Pattern, PlainRows
from ph_l2o.compilation.steps import check_constant
from ph_l2o.compilation.tapes import Bind, RowTape, full, particles_update, row_update
from ph_l2o.errors import CompileError
from ph_l2o.inner import Carry, Steps, Window, value_and_gradient
from ph_l2o.inner.executor import Cotangents, Order
from ph_l2o.inner.meta_parameters import join
from ph_l2o.inner.particles import Particles
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.params import Params
from ph_l2o.tasks.task import Buffers

log = logging.getLogger(__name__)


class UpdateCompiler:
    """Compiles updates: one for all architectures in padded rows, one for each in plain ones.

    Args:
        known: What has been compiled.
    """

    def __init__(self, known: Compilations):
        self._known = known
        self._patterns: dict[Hashable, Pattern] = {}
        self._one_by_one: set[Hashable] = set()  # optimizers whose update cannot be compiled for all architectures

    def rows(self, optimizer: LearnedOptimizer, carry: Carry) -> PlainRows:
        """Padded rows for an optimizer that `takes_padding`, else plain ones."""
        flat, layout = carry.params.flat, carry.params.layout
        if not optimizer.takes_padding or Same(optimizer) in self._one_by_one:
            return PlainRows(layout)
        key = (Same(optimizer), shapes([flat[:, 0]]))
        if key not in self._patterns:
            self._patterns[key] = Pattern(optimizer, flat)
        return PaddedRows(self._patterns[key], layout, flat)

    def gives_up_padding(self, optimizer: LearnedOptimizer, error: CompileError) -> bool:
        """Compile an optimizer's update for each architecture from now on; whether that is another way at all."""
        if not optimizer.takes_padding or Same(optimizer) in self._one_by_one:
            return False
        self._one_by_one.add(Same(optimizer))
        name = type(optimizer).__name__
        log.warning("%s's update for all architectures %s; it is compiled for each", name, error)
        return True

    def compiled(
        self, window: Window, rows: PlainRows, spec: CarrySpec, carry: FlatCarry, how: Hashable,
        compile: Callable[[Example], Any],
    ) -> Any:  # fmt: skip
        """The compiled update for a window's carry in these rows.

        Raises:
            CompileError: If it cannot be compiled.
        """
        example, optimizer = rows.example(spec, carry), window.optimizer
        tensors = [*window.phi.values(), *example.carry.smooth, *example.carry.rest]
        layout = None if example.any_sizes else rows.layout
        signature = (Same(optimizer), layout, tuple(window.phi), how, shapes(tensors))
        return self._known.get(
            signature, f"{type(optimizer).__name__}'s update, {example.name}", lambda: compile(example)
        )


class _Between(NamedTuple):
    """A carry between an update and the next inner gradient."""

    rows: FlatCarry
    buffers: Buffers


class _Kept(NamedTuple):
    """What a step leaves for the way back."""

    at: Tensor  # parameters, of which loss and gradient have a graph if the order is 2
    loss: Tensor
    gradient: Tensor
    by_update: Tensors


class UpdateTape(RowTape[_Between]):
    """Steps with a compiled update that can be taken back."""

    def __init__(self, window: Window, compiler: UpdateCompiler, order: Order):
        super().__init__(window)
        carry = window.carry.detach()
        self._order = order
        try:
            self._set_up(carry, compiler)
        except CompileError as error:
            if not compiler.gives_up_padding(window.optimizer, error):
                raise
            self._set_up(carry, compiler)
        self._kept: list[_Kept] = []

    def _set_up(self, carry: Carry, compiler: UpdateCompiler) -> None:
        window = self.window
        self._rows = compiler.rows(window.optimizer, carry)
        spread = self._rows.spread(carry)
        self._spec = CarrySpec(spread)
        self.start = _Between(self._spec.flatten(spread), carry.buffers)
        self._update: Differentiable = compiler.compiled(
            window, self._rows, self._spec, self.start.rows, "tape", lambda example: compiled_update(window, example)
        )

    def step(self, carry: _Between, batch: Any) -> tuple[_Between, Tensor]:
        (smooth, rest), buffers = carry
        problem, rows = self.window.problem, self._rows
        at = rows.gather_row(smooth[0]).detach().requires_grad_()
        loss, grads, buffers = value_and_gradient(
            problem, problem.params.like(at), buffers, batch, create_graph=self._order == 2
        )
        check_constant(buffers)
        inputs = [self.phi, *smooth, rows.spread_row(grads.flat.detach()), loss.detach(), *rest, *rows.constants]
        smooth, rest, kept = self._update.forward(inputs)
        self._kept.append(_Kept(at, loss, grads.flat, kept))
        return _Between(FlatCarry(list(smooth), list(rest)), buffers), loss.detach()

    def last_loss(self, carry: _Between, batch: Any) -> Tensor:
        params, _, buffers = self.plain(carry)
        loss, slope, _ = value_and_gradient(self.window.problem, params, buffers, batch)
        self._slope = slope.flat
        return loss

    def plain(self, carry: _Between) -> Carry:
        return self._rows.gather(self._spec.unflatten(carry.rows), carry.buffers)

    def back(self, cotangents: Cotangents, of_loss: Tensor) -> Cotangents:
        rows, like = self._rows, self.start.rows.smooth
        if not cotangents:
            return [rows.spread_row(of_loss[:, None] * self._slope), *(torch.zeros_like(x) for x in like[1:])]
        at, loss, gradient, kept = self._kept.pop()  # freed as soon as it is used
        of_phi, direct, *of_state, of_gradient, of_input = self._update.backward(kept, full(cotangents, like))
        self.add(of_phi)
        if not self._kept:
            return []
        if self._order == 2:
            slopes = (of_input + of_loss, rows.gather_row(of_gradient))
            (through,) = torch.autograd.grad((loss, gradient), at, slopes)
        else:
            through = of_loss[:, None] * gradient
        return [direct + rows.spread_row(through), *of_state]

    def gradient_norms(self) -> Tensor:
        return self._kept[-1].gradient.detach().norm(dim=1)


class ParticleUpdates(Steps[_Between]):
    """Steps of particles, with an update that is compiled for each architecture.

    One for all needs symbols for sizes, and under vmap, by which particles run, tracing makes numbers of them.
    """

    def __init__(self, window: Window, compiler: UpdateCompiler):
        super().__init__(window)
        carry = window.carry.detach()
        rows = PlainRows(carry.params.layout)
        spread = rows.spread(carry)
        self._spec, self._rows, self._problem = CarrySpec(spread), rows, Particles(window.problem)
        self._phi = [p.detach() for p in window.phi.values()]
        self.start = _Between(self._spec.flatten(spread), carry.buffers)
        self._update: Callable[[Tensors], Tensors] = compiler.compiled(
            window, rows, self._spec, self.start.rows, "particles",
            lambda example: compiled_particle_update(window, example),
        )  # fmt: skip

    def step(self, carry: _Between, batch: Any) -> tuple[_Between, Tensor]:
        (smooth, rest), buffers = carry
        params = self.window.carry.params.like(smooth[0])
        loss, grads, buffers = value_and_gradient(self._problem, params, buffers, batch)
        after = list(self._update([*self._phi, *smooth, grads.flat.contiguous(), loss.contiguous(), *rest]))
        return _Between(FlatCarry(after[: len(smooth)], after[len(smooth) :]), buffers), loss

    def last_loss(self, carry: _Between, batch: Any) -> Tensor:
        params, _, buffers = self.plain(carry)
        return self._problem.loss(params, buffers, batch)[0]

    def plain(self, carry: _Between) -> Carry:
        return self._rows.gather(self._spec.unflatten(carry.rows), carry.buffers)


def compiled_update(window: Window, example: Example) -> Differentiable:
    """The update with all meta-parameters in one row; gradient and loss are the last of its inputs."""
    theta = example.carry.smooth[0]  # an example of a gradient too
    inputs = [join(window.phi), *example.carry.smooth, theta, theta[:, 0].contiguous()]
    constants = [*example.carry.rest, *example.constants]
    return compile_differentiable(
        update_function(example, row_update(window), 1), inputs, constants, any_sizes=example.any_sizes
    )


def compiled_particle_update(window: Window, example: Example) -> Callable[[Tensors], Tensors]:
    """The same of particles, without derivative."""
    phi, theta = [p.detach() for p in window.phi.values()], example.carry.smooth[0]
    inputs = [*phi, *example.carry.smooth, theta, theta[..., 0].contiguous()]
    function = update_function(example, particles_update(window), len(phi))

    def joined(tensors: list[Tensor]) -> list[Tensor]:
        smooth, rest = function(tensors[: len(inputs)], tensors[len(inputs) :])
        return [*smooth, *rest]

    return compile_function(joined, [*inputs, *example.carry.rest])


def update_function(
    example: Example, bind: Bind, num_phi: int
) -> Callable[[list[Tensor], list[Tensor]], tuple[list[Tensor], list[Tensor]]]:
    """The optimizer's update as a function of tensors.

    It takes meta-parameters, the carry's smooth tensors, gradient and loss; then the carry's rest and the rows'
    constants. It returns the smooth tensors; then the rest.
    """
    spec, num_rest = example.spec, len(example.carry.rest)

    def function(tensors: list[Tensor], constants: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        *smooth, gradient, loss = tensors[num_phi:]
        carry = spec.unflatten(FlatCarry(smooth, constants[:num_rest]))
        params = Params(carry.params.flat, example.layout(constants[num_rest:]))
        new, state = bind(tensors[:num_phi])(params, params.like(gradient), loss, carry.state)
        after = spec.flatten(Carry(params.like(new), state, {}))
        return after.smooth, after.rest

    return function
