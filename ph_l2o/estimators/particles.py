"""Many perturbed copies of an optimizer ("particles"), each on the same problems, unrolled at once without a graph.

Inside a window tensors have a particle axis P in front: parameters `(P, B, N)`. Between windows the problem axis is in
front, `(B, P, N)`, so that a carry can be shared out over processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from ph_l2o.inner import Carry, value_and_gradient
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer, map_state
from ph_l2o.params import Params
from ph_l2o.tasks.task import Buffers, Problem


class ParticleState(NamedTuple):
    """State of a carry with particles.

    Attributes:
        optimizer: The optimizer's state, tensors of shape `(B, P, …)`.
        perturbation: Sum of the standard normal draws so far, `(B, num_pairs, D)` for D meta-parameters.
    """

    optimizer: Any
    perturbation: Tensor


class Particles(Problem):
    """The same problems for P particles: parameters `(P, B, N)`, losses `(P, B)`, mini-batches shared by all.

    A module's own draws, such as dropout, are shared too.

    Args:
        problem: The B problems.
    """

    def __init__(self, problem: Problem):
        self.problem, self.keys, self.params = problem, problem.keys, problem.params

    def loss(self, params: Params, buffers: Buffers, batch: Any) -> tuple[Tensor, Buffers]:
        def one(flat: Tensor, buffers: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            loss, after = self.problem.loss(params.like(flat), buffers, batch)
            return loss, dict(after)

        return vmap(one, randomness="same")(params.flat, dict(buffers))


def map_carry(fn: Callable[[Tensor], Tensor], carry: Carry) -> Carry:
    """Apply `fn` to every tensor of a carry."""
    buffers = {name: fn(b) for name, b in carry.buffers.items()}
    return Carry(carry.params.like(fn(carry.params.flat)), map_state(fn, carry.state), buffers)


def repeat(carry: Carry, num_particles: int) -> Carry:
    """P particles at one carry: tensors `(B, …)` → `(P, B, …)`."""
    return map_carry(lambda x: x.expand(num_particles, *x.shape).contiguous(), carry)


def swap_axes(carry: Carry) -> Carry:
    """Tensors `(P, B, …)` → `(B, P, …)`, or back."""
    # Contiguous, so that a carry out of a file has the same layout, and kernels the same rounding.
    return map_carry(lambda x: x.transpose(0, 1).contiguous(), carry)


@torch.no_grad()
def unroll(
    optimizer: LearnedOptimizer, phi: Mapping[str, Tensor], problem: Problem, carry: Carry, first: int, count: int
) -> tuple[Carry, Tensor]:
    """One window of every particle.

    Args:
        optimizer: The learned optimizer.
        phi: Meta-parameters of each particle, shape `(P, 1, *shape)`, or `(P, B, *shape)` if they differ between
            problems.
        problem: The B problems.
        carry: Where the window starts, tensors `(P, B, …)`.
        first: Number of the window's first inner step.
        count: Inner steps of the window.

    Returns:
        The last carry, and the losses after each step, `(K, P, B)`.
    """
    update = particle_update(optimizer, phi)
    particles = Particles(problem)
    losses: list[Tensor] = []
    batches = problem.batches(first, count + 1)
    for _ in range(count):
        loss, grads, buffers = value_and_gradient(particles, carry.params, carry.buffers, next(batches))
        losses.append(loss)
        flat, state = update(carry.params, grads, loss, carry.state)
        carry = Carry(carry.params.like(flat), state, buffers)
    losses.append(particles.loss(carry.params, carry.buffers, next(batches))[0])
    return carry, torch.stack(losses[1:])


Update = Callable[[Params, Params, Tensor, Any], tuple[Tensor, Any]]


def particle_update(optimizer: LearnedOptimizer, phi: Mapping[str, Tensor]) -> Update:
    """The optimizer's step of all particles: parameters, gradients, losses `(P, B)` and state → parameters, state."""
    return _shared(optimizer, phi) if all(p.shape[1] == 1 for p in phi.values()) else _per_problem(optimizer, phi)


def _shared(optimizer: LearnedOptimizer, phi: Mapping[str, Tensor]) -> Update:
    """A particle's meta-parameters are those of all its problems: one call for each particle."""
    own = {name: p[:, 0] for name, p in phi.items()}

    def update(params: Params, grads: Params, loss: Tensor, state: Any) -> tuple[Tensor, Any]:
        def one(phi: dict[str, Tensor], flat: Tensor, grad: Tensor, loss: Tensor, state: Any) -> tuple[Tensor, Any]:
            after, state = functional_call(optimizer, phi, (params.like(flat), params.like(grad), loss, state))
            return after.flat, state

        return vmap(one)(own, params.flat, grads.flat, loss, state)

    return update


def _per_problem(optimizer: LearnedOptimizer, phi: Mapping[str, Tensor]) -> Update:
    """Meta-parameters differ between problems too: one call for each particle and problem."""
    one = per_problem(optimizer, {name: p.flatten(0, 1) for name, p in phi.items()})

    def update(params: Params, grads: Params, loss: Tensor, state: Any) -> tuple[Tensor, Any]:
        lead = loss.shape
        flat, state = one(
            params.like(params.flat.flatten(0, 1)), params.like(grads.flat.flatten(0, 1)), loss.flatten(),
            map_state(lambda x: x.flatten(0, 1), state),
        )  # fmt: skip
        return flat.unflatten(0, lead), map_state(lambda x: x.unflatten(0, lead), state)

    return update


def per_problem(optimizer: LearnedOptimizer, phi: Mapping[str, Tensor]) -> Update:
    """The optimizer's step with meta-parameters `(B, *shape)`, those of each problem its own."""

    def update(params: Params, grads: Params, loss: Tensor, state: Any) -> tuple[Tensor, Any]:
        def one(phi: dict[str, Tensor], flat: Tensor, grad: Tensor, loss: Tensor, state: Any) -> tuple[Tensor, Any]:
            arguments = (params.like(flat[None]), params.like(grad[None]), loss[None], map_state(_add_axis, state))
            after, state = functional_call(optimizer, phi, arguments)
            return after.flat[0], map_state(lambda x: x[0], state)

        return vmap(one)(dict(phi), params.flat, grads.flat, loss, state)

    return update


def _add_axis(x: Tensor) -> Tensor:
    return x[None]
