"""The inner loop: an optimizer steps a batch of optimizees."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from ph_l2o.inner.carry import Carry, start
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.params import Params
from ph_l2o.tasks.task import Buffers, Problem

C = TypeVar("C")

_DRAWN_AT_ONCE = 50  # inner steps


def unroll(step: Callable[[C, Any], tuple[C, Tensor]], carry: C, batches: Iterable[Any]) -> tuple[C, list[Tensor]]:
    """The inner loop, wherever one runs.

    Args:
        step: From a carry and what is drawn for a step to the next carry, and the losses before the step.
        carry: Where it starts, in any form.
        batches: What is drawn for each step.

    Returns:
        The last carry, and the losses before each step.
    """
    losses: list[Tensor] = []
    for batch in batches:
        carry, loss = step(carry, batch)
        losses.append(loss)
    return carry, losses


def _draws(problem: Problem, first: int, count: int) -> Iterator[Any]:
    """What is drawn for `count` inner steps from number `first` on, in windows, so that memory does not grow."""
    for begin in range(first, first + count, _DRAWN_AT_ONCE):
        yield from problem.batches(begin, min(_DRAWN_AT_ONCE, first + count - begin))


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


@torch.no_grad()
def run(
    optimizer: LearnedOptimizer, problem: Problem, num_steps: int, *, carry: Carry | None = None, first: int = 0
) -> tuple[Carry, Tensor]:
    """Run an episode of `num_steps` inner steps without meta-gradient.

    Args:
        optimizer: The optimizer.
        problem: The optimizees.
        num_steps: Number of inner steps, >= 1.
        carry: Where to start; the default is the problem's start.
        first: Number of inner steps that led to `carry`; the random draws depend on it.

    Returns:
        The last carry, and the losses loss_0 … loss_T of shape `(num_steps + 1, B)`, where loss_k is the loss at θ_k
        on what is drawn for step k; of an optimizer that reads out, at the parameters that it reads out then.
    """

    def loss_of(carry: Carry, batch: Any) -> Tensor:
        return problem.loss(optimizer.readout(carry.params, carry.state), carry.buffers, batch)[0]

    def step(carry: Carry, batch: Any) -> tuple[Carry, Tensor]:
        after, loss = inner_step(optimizer, problem, carry, batch)
        return after, loss_of(carry, batch) if optimizer.reads_out else loss

    carry = start(optimizer, problem) if carry is None else carry
    carry, losses = unroll(step, carry, _draws(problem, first, num_steps))
    losses.append(loss_of(carry, next(problem.batches(first + num_steps, 1))))
    return carry, torch.stack(losses)


def inner_step(optimizer: LearnedOptimizer, problem: Problem, carry: Carry, batch: Any) -> tuple[Carry, Tensor]:
    """One inner step of every problem: the next carry, and the losses `(B,)` before the step."""
    loss, grads, buffers = value_and_gradient(problem, carry.params, carry.buffers, batch)
    params, state = optimizer.update(carry.params, grads, loss, carry.state)
    return Carry(params, state, buffers), loss


@torch.no_grad()
def final_loss(problem: Problem, carry: Carry, last: Tensor, num_batches: int = 10) -> Tensor:
    """Loss of the finished problems: the mean over fresh batches, or `last` where the loss has no noise."""
    if not problem.stochastic:
        return last
    losses = [problem.loss(carry.params, carry.buffers, batch)[0] for batch in problem.final_batches(num_batches)]
    return torch.stack(losses).mean(0)
