"""Inner steps as they are, operation by operation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ph_l2o.inner.carry import Carry
from ph_l2o.inner.executor import Executor, Order, Steps, Tape
from ph_l2o.inner.loop import value_and_gradient
from ph_l2o.inner.meta_parameters import call_with
from ph_l2o.inner.particles import Particles, particle_update
from ph_l2o.inner.window import Window


class Eager(Executor):
    """Runs inner steps as they are, with torch's own automatic differentiation."""

    def tape(self, window: Window, *, order: Order, gradient_norms: bool = False) -> EagerTape:
        """See `Executor.tape`."""
        del gradient_norms
        return EagerTape(window, order)

    def particles(self, window: Window) -> EagerParticles:
        """See `Executor.particles`."""
        return EagerParticles(window)


EAGER = Eager()


class _Kept(NamedTuple):
    """What a step leaves for the way back."""

    before: list[Tensor]  # the carry's tensors, of which those that can be differentiated require a gradient
    after: list[Tensor]  # with their graph
    loss: Tensor  # with its graph if the order is 2
    gradient: Tensor | None  # of the losses before the step


class EagerTape(Tape[Carry]):
    """Each step has a graph of its own, which is freed as soon as the step is taken back.

    Buffers that are differentiable in the parameters are differentiated if the order is 2.
    """

    def __init__(self, window: Window, order: Order):
        super().__init__(window)
        self._phi = {name: p.detach().requires_grad_() for name, p in window.phi.items()}
        self._order, self._kept = order, list[_Kept]()
        self._total: list[Tensor | None] = [None] * len(self._phi)
        params, state, buffers = window.carry.detach()
        self.start = Carry(params.like(params.flat.requires_grad_(order == 2)), state, buffers)

    def unroll(self) -> tuple[Carry, Tensor]:
        """See `Steps.unroll`."""
        return call_with(self._phi, self.window.optimizer, super().unroll)

    @torch.enable_grad()
    def step(self, carry: Carry, batch: Any) -> tuple[Carry, Tensor]:
        """See `Steps.step`."""
        second = self._order == 2
        loss, grads, buffers = value_and_gradient(
            self.window.problem, carry.params, carry.buffers, batch, create_graph=second
        )
        params, state = self.window.optimizer.update(carry.params, grads, loss, carry.state)
        after = Carry(params, state, buffers)
        self._kept.append(_Kept(carry.tensors(), after.tensors(), loss, grads.flat.detach()))
        return after.map(_as_leaf), loss.detach()

    def last_loss(self, carry: Carry, batch: Any) -> Tensor:
        """See `Steps.last_loss`."""
        problem, gradient = self.window.problem, None
        if self._order == 2:
            with torch.enable_grad():
                loss, _ = problem.loss(carry.params, carry.buffers, batch)
        else:
            loss, grads, _ = value_and_gradient(problem, carry.params, carry.buffers, batch)
            gradient = grads.flat
        self._kept.append(_Kept(carry.tensors(), [], loss, gradient))
        return loss.detach()

    def plain(self, carry: Carry) -> Carry:
        """See `Steps.plain`."""
        return carry.detach()

    def back(self, cotangents: Sequence[Tensor | None], of_loss: Tensor) -> Sequence[Tensor | None]:
        """See `Tape.back`."""
        before, after, loss, gradient = self._kept.pop()
        pairs = [(y, c) for y, c in zip(after, cotangents, strict=True) if c is not None and y.requires_grad]
        leaves = [x for x in before if x.requires_grad] if self._kept else []
        if leaves and loss.requires_grad:
            pairs.append((loss, of_loss))
        inputs = [*self._phi.values(), *leaves]
        found: Sequence[Tensor | None] = [None] * len(inputs)
        if pairs:
            found = torch.autograd.grad([y for y, _ in pairs], inputs, [c for _, c in pairs], allow_unused=True)
        for k, part in enumerate(found[: len(self._phi)]):
            if part is not None:
                total = self._total[k]
                self._total[k] = part.clone() if total is None else total.add_(part)
        if not self._kept:
            return []
        of_leaves = iter(found[len(self._phi) :])
        of_params, *others = (next(of_leaves) if x.requires_grad else None for x in before)
        if gradient is not None and not loss.requires_grad:  # its slope is the inner gradient
            direct = of_loss[:, None] * gradient
            of_params = direct if of_params is None else of_params + direct
        return [of_params, *others]

    def gradient_norms(self) -> Tensor:
        """See `Tape.gradient_norms`."""
        gradient = self._kept[-1].gradient
        assert gradient is not None
        return gradient.norm(dim=1)

    def gradient(self) -> dict[str, Tensor]:
        """See `Tape.gradient`."""
        pairs = zip(self._phi.items(), self._total, strict=True)
        return {name: torch.zeros_like(p) if g is None else g for (name, p), g in pairs}


def _as_leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_(x.requires_grad)


class EagerParticles(Steps[Carry]):
    """Each step of all particles by one vmap over the optimizer's update, and one over the problems' loss."""

    def __init__(self, window: Window):
        super().__init__(window)
        self.start = window.carry
        self._problem, self._update = Particles(window.problem), particle_update(window.optimizer, window.phi)

    def step(self, carry: Carry, batch: Any) -> tuple[Carry, Tensor]:
        """See `Steps.step`."""
        loss, grads, buffers = value_and_gradient(self._problem, carry.params, carry.buffers, batch)
        flat, state = self._update(carry.params, grads, loss, carry.state)
        return Carry(carry.params.like(flat), state, buffers), loss

    def last_loss(self, carry: Carry, batch: Any) -> Tensor:
        """See `Steps.last_loss`."""
        return self._problem.loss(carry.params, carry.buffers, batch)[0]

    def plain(self, carry: Carry) -> Carry:
        """See `Steps.plain`."""
        return carry.detach()
