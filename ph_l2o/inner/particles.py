"""Many perturbed copies of an optimizer ("particles"), each on the same problems, stepped at once without a graph.

Tensors have a particle axis P in front: parameters `(P, B, N)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.func import functional_call, vmap

from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer, map_state
from ph_l2o.params import Params
from ph_l2o.tasks.task import Buffers, Problem


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


Update = Callable[[Params, Params, Tensor, Any], tuple[Tensor, Any]]  # as `LearnedOptimizer.update`, but flat


def flat_update(optimizer: LearnedOptimizer) -> Update:
    """The optimizer's step with its own meta-parameters."""

    def update(params: Params, grads: Params, loss: Tensor, state: Any) -> tuple[Tensor, Any]:
        after, state = optimizer.update(params, grads, loss, state)
        return after.flat, state

    return update


def particle_update(optimizer: LearnedOptimizer, phi: Mapping[str, Tensor]) -> Update:
    """The optimizer's step of all particles: parameters, gradients, losses `(P, B)` and state → parameters, state."""
    return _shared(optimizer, phi) if all(p.shape[1] == 1 for p in phi.values()) else _per_problem(optimizer, phi)


def batched_particle_update(optimizer: LearnedOptimizer, phi: Mapping[str, Tensor], num_problems: int) -> Update:
    """The same, with all particles and problems as one batch where the optimizer's class says that this is possible."""
    if "phi_by_problem" not in vars(type(optimizer)) or not optimizer.phi_by_problem:  # a subclass may add to φ
        return particle_update(optimizer, phi)
    of_each = {name: p.expand(-1, num_problems, *p.shape[2:]) for name, p in phi.items()}
    return _per_problem(optimizer, of_each, _together)


def _shared(optimizer: LearnedOptimizer, phi: Mapping[str, Tensor]) -> Update:
    """A particle's meta-parameters are those of all its problems: one call for each particle."""
    own = {name: p[:, 0] for name, p in phi.items()}

    def update(params: Params, grads: Params, loss: Tensor, state: Any) -> tuple[Tensor, Any]:
        def one(phi: dict[str, Tensor], flat: Tensor, grad: Tensor, loss: Tensor, state: Any) -> tuple[Tensor, Any]:
            after, state = functional_call(optimizer, phi, (params.like(flat), params.like(grad), loss, state))
            return after.flat, state

        return vmap(one)(own, params.flat, grads.flat, loss, state)

    return update


def _per_problem(
    optimizer: LearnedOptimizer,
    phi: Mapping[str, Tensor],
    make: Callable[[LearnedOptimizer, Mapping[str, Tensor]], Update] | None = None,
) -> Update:
    """Meta-parameters differ between problems too: particles and problems on one axis, stepped by `per_problem`."""
    one = (make or per_problem)(optimizer, {name: p.flatten(0, 1) for name, p in phi.items()})

    def update(params: Params, grads: Params, loss: Tensor, state: Any) -> tuple[Tensor, Any]:
        lead = loss.shape
        flat, state = one(
            params.like(params.flat.flatten(0, 1)), params.like(grads.flat.flatten(0, 1)), loss.flatten(),
            map_state(lambda x: x.flatten(0, 1), state),
        )  # fmt: skip
        return flat.unflatten(0, lead), map_state(lambda x: x.unflatten(0, lead), state)

    return update


def _together(optimizer: LearnedOptimizer, phi: Mapping[str, Tensor]) -> Update:
    """As `per_problem`, by one call."""

    def update(params: Params, grads: Params, loss: Tensor, state: Any) -> tuple[Tensor, Any]:
        after, state = functional_call(optimizer, dict(phi), (params, grads, loss, state))
        return after.flat, state

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
