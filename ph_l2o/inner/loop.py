"""The inner loop: an optimizer steps a batch of optimizees."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer, detach_state
from ph_l2o.params import Params
from ph_l2o.tasks.task import Buffers, Problem


class Carry(NamedTuple):
    """What one inner step leaves to the next.

    Attributes:
        params: Parameters of the optimizees, flat shape `(B, N)`.
        state: State of the optimizer.
        buffers: Buffers of the optimizees.
    """

    params: Params
    state: Any
    buffers: Buffers

    def detach(self) -> Carry:
        """The same carry, cut from the graph."""
        buffers = {name: b.detach() for name, b in self.buffers.items()}
        return Carry(self.params.detach(), detach_state(self.state), buffers)


def start(optimizer: LearnedOptimizer, problem: Problem) -> Carry:
    """The carry at the start of an episode."""
    state = optimizer.init(problem.params)
    if problem.hidden is not None:
        state = optimizer.hide_loss(state, problem.hidden)
    return Carry(problem.params, state, problem.buffers)


def value_and_gradient(
    problem: Problem, params: Params, buffers: Buffers, batch: Any, *, create_graph: bool = False
) -> tuple[Tensor, Params, Buffers]:
    """Losses `(B,)`, their gradients and the next buffers.

    With `create_graph` losses and gradients are differentiable in `params`; without, they are constants.
    """
    with torch.enable_grad():
        leaf = params.flat if create_graph and params.flat.requires_grad else params.flat.detach().requires_grad_()
        loss, buffers = problem.loss(params.like(leaf), buffers, batch)
        (gradient,) = torch.autograd.grad(loss, leaf, torch.ones_like(loss), create_graph=create_graph)
    if not create_graph:
        loss, buffers = loss.detach(), {name: b.detach() for name, b in buffers.items()}
    return loss, params.like(gradient), buffers


def inner_step(
    optimizer: LearnedOptimizer, problem: Problem, carry: Carry, batch: Any, *, create_graph: bool = False
) -> tuple[Carry, Tensor]:
    """One inner step of every problem.

    Returns:
        The next carry, and the losses `(B,)` at the parameters before the step.
    """
    loss, grads, buffers = value_and_gradient(problem, carry.params, carry.buffers, batch, create_graph=create_graph)
    params, state = optimizer.update(carry.params, grads, loss, carry.state)
    return Carry(params, state, buffers), loss


@torch.no_grad()
def run(
    optimizer: LearnedOptimizer,
    problem: Problem,
    num_steps: int,
    *,
    carry: Carry | None = None,
    first: int = 0,
    on_step: Callable[[int, Carry, Tensor], None] | None = None,
    window: int = 50,
) -> tuple[Carry, Tensor]:
    """Run an episode of `num_steps` inner steps without meta-gradient.

    Args:
        optimizer: The optimizer.
        problem: The optimizees.
        num_steps: Number of inner steps, >= 1.
        carry: Where to start; the default is the problem's start.
        first: Number of inner steps that led to `carry`; the random draws depend on it.
        on_step: Called after each step with the number of steps done, the carry and the losses before the step.
        window: Number of steps whose random draws are made at once.

    Returns:
        The last carry, and the losses loss_0 … loss_T of shape `(num_steps + 1, B)`, where loss_k is the loss at θ_k
        on what is drawn for step k.
    """
    carry = start(optimizer, problem) if carry is None else carry
    losses: list[Tensor] = []
    for step, batch in enumerate(_batches(problem, first, num_steps, window), start=first + 1):
        carry, loss = inner_step(optimizer, problem, carry, batch)
        losses.append(loss)
        if on_step is not None:
            on_step(step, carry, loss)
    losses.append(problem.loss(carry.params, carry.buffers, next(problem.batches(first + num_steps, 1)))[0])
    return carry, torch.stack(losses)


def _batches(problem: Problem, first: int, num_steps: int, window: int) -> Iterable[Any]:
    for begin in range(first, first + num_steps, window):
        yield from problem.batches(begin, min(window, first + num_steps - begin))


@torch.no_grad()
def final_loss(problem: Problem, carry: Carry, last: Tensor, num_batches: int = 10) -> Tensor:
    """Loss of the finished problems: the mean over fresh batches, or `last` where the loss has no noise."""
    if not problem.stochastic:
        return last
    losses = [problem.loss(carry.params, carry.buffers, batch)[0] for batch in problem.final_batches(num_batches)]
    return torch.stack(losses).mean(0)
