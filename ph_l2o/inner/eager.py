"""Inner steps as they are, operation by operation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ph_l2o.inner.carry import Carry
from ph_l2o.inner.executor import Cotangents, Executor, Order, Steps, Tape
from ph_l2o.inner.loop import value_and_gradient
from ph_l2o.inner.meta_parameters import call_with
from ph_l2o.inner.particles import Particles, batched_particle_update
from ph_l2o.inner.window import Window


class Eager(Executor):
    """Runs inner steps as they are, with torch's own automatic differentiation."""

    def tape(self, window: Window, *, order: Order, stepwise: bool = False) -> EagerTape:
        return StepwiseTape(window, order) if stepwise else EagerTape(window, order)

    def particles(self, window: Window) -> EagerParticles:
        return EagerParticles(window)


EAGER = Eager()


class _Kept(NamedTuple):
    """What a step leaves for the way back."""

    before: Carry
    after: Carry | None  # None after the last loss
    loss: Tensor  # with its graph if the order is 2
    gradient: Tensor | None  # of the losses before the step


class EagerTape(Tape[Carry]):
    """All steps in one graph, which are taken back at once when the first one's turn comes.

    Buffers that are differentiable in the parameters are differentiated if the order is 2.
    """

    def __init__(self, window: Window, order: Order):
        super().__init__(window)
        self.phi = {name: p.detach().requires_grad_() for name, p in window.phi.items()}
        self.order, self.kept = order, list[_Kept]()
        params, state, buffers = window.carry.detach()
        self.start = Carry(params.like(params.flat.requires_grad_(order == 2)), state, buffers)
        self._seeds: list[tuple[Tensor, Tensor]] = []
        self._gradient: Sequence[Tensor | None] = [None] * len(self.phi)

    def unroll(self) -> tuple[Carry, Tensor]:
        return call_with(self.phi, self.window.optimizer, super().unroll)

    @torch.enable_grad()
    def step(self, carry: Carry, batch: Any) -> tuple[Carry, Tensor]:
        problem, optimizer = self.window.problem, self.window.optimizer
        loss, grads, buffers = value_and_gradient(
            problem, carry.params, carry.buffers, batch, create_graph=self.order == 2
        )
        params, state = optimizer.update(carry.params, grads, loss, carry.state)
        after = Carry(params, state, buffers)
        self.kept.append(_Kept(carry, after, loss, grads.flat.detach()))
        return after, loss.detach()

    def last_loss(self, carry: Carry, batch: Any) -> Tensor:
        problem, gradient = self.window.problem, None
        if self.order == 2:
            with torch.enable_grad():
                loss, _ = problem.loss(carry.params, carry.buffers, batch)
        else:
            loss, grads, _ = value_and_gradient(problem, carry.params, carry.buffers, batch)
            gradient = grads.flat
        self.kept.append(_Kept(carry, None, loss, gradient))
        return loss.detach()

    def plain(self, carry: Carry) -> Carry:
        return carry.detach()

    def back(self, cotangents: Cotangents, of_loss: Tensor) -> Cotangents:
        before, _, loss, gradient = self.kept.pop()
        if not self.kept:
            self._gradient = _differentiated(self._seeds, list(self.phi.values()))
        elif loss.requires_grad:
            self._seeds.append((loss, of_loss))
        elif before.params.flat.requires_grad and gradient is not None:  # the slope is the inner gradient
            self._seeds.append((before.params.flat, of_loss[:, None] * gradient))
        return ()

    def gradient_norms(self) -> Tensor:
        gradient = self.kept[-1].gradient
        assert gradient is not None
        return gradient.norm(dim=1)

    def gradient(self) -> dict[str, Tensor]:
        pairs = zip(self.phi.items(), self._gradient, strict=True)
        return {name: torch.zeros_like(p) if g is None else g for (name, p), g in pairs}


class StepwiseTape(EagerTape):
    """Each step has a graph of its own, which is freed as soon as the step is taken back."""

    def step(self, carry: Carry, batch: Any) -> tuple[Carry, Tensor]:
        after, loss = super().step(carry, batch)
        return after.map(lambda x: x.detach().requires_grad_(x.requires_grad)), loss

    def back(self, cotangents: Cotangents, of_loss: Tensor) -> Cotangents:
        before, after, loss, gradient = self.kept.pop()
        outputs = [] if after is None else after.tensors()
        seeds = [(y, c) for y, c in zip(outputs, cotangents, strict=True) if c is not None and y.requires_grad]
        leaves = [x for x in before.tensors() if x.requires_grad] if self.kept else []
        if leaves and loss.requires_grad:
            seeds.append((loss, of_loss))
        found, count = _differentiated(seeds, [*self.phi.values(), *leaves]), len(self.phi)
        self._gradient = [_sum(total, part) for total, part in zip(self._gradient, found[:count], strict=True)]
        if not self.kept:
            return ()
        of_leaves = iter(found[count:])
        of_params, *others = (next(of_leaves) if x.requires_grad else None for x in before.tensors())
        if gradient is not None and not loss.requires_grad:  # the slope is the inner gradient
            of_params = _sum(of_params, of_loss[:, None] * gradient)
        return [of_params, *others]


def _differentiated(seeds: Sequence[tuple[Tensor, Tensor]], inputs: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Derivatives in the inputs, from outputs and their cotangents; None stands for zeros."""
    if not seeds:
        return [None] * len(inputs)
    return torch.autograd.grad([y for y, _ in seeds], inputs, [c for _, c in seeds], allow_unused=True)


def _sum(x: Tensor | None, y: Tensor | None) -> Tensor | None:
    if x is None or y is None:
        return y if x is None else x
    return x + y


class EagerParticles(Steps[Carry]):
    """Each step of all particles by one vmap over the optimizer's update, and one over the problems' loss."""

    def __init__(self, window: Window):
        super().__init__(window)
        self.start = window.carry
        self._problem = Particles(window.problem)
        self._update = batched_particle_update(window.optimizer, window.phi, window.problem.num_problems)

    def step(self, carry: Carry, batch: Any) -> tuple[Carry, Tensor]:
        loss, grads, buffers = value_and_gradient(self._problem, carry.params, carry.buffers, batch)
        flat, state = self._update(carry.params, grads, loss, carry.state)
        return Carry(carry.params.like(flat), state, buffers), loss

    def last_loss(self, carry: Carry, batch: Any) -> Tensor:
        return self._problem.loss(carry.params, carry.buffers, batch)[0]

    def plain(self, carry: Carry) -> Carry:
        return carry.detach()
