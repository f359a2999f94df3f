"""Forward-mode meta-gradients: derivatives that run along with the inner loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ph_l2o.errors import CompileError
from ph_l2o.estimators.directions import Noise, check_noise, draw
from ph_l2o.estimators.estimator import Estimate, Estimator
from ph_l2o.estimators.objectives import value_and_weights
from ph_l2o.estimators.tangents import as_leaves, hessian_times, is_differentiable, jacobian_times
from ph_l2o.inner import EAGER, Carry, Eager, Executor, Steps, Window, value_and_gradient
from ph_l2o.inner.carry import state_tensors
from ph_l2o.inner.meta_parameters import call_with, size, split, trained
from ph_l2o.inner.particles import flat_update, per_problem
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer, map_state
from ph_l2o.params import Params
from ph_l2o.tasks.task import Buffers, Problem


class ForwardState(NamedTuple):
    """State of a carry with tangents, the derivatives along P directions of the meta-parameters.

    Attributes:
        optimizer: The optimizer's state.
        params_tangent: Tangents of the parameters, `(B, P, N)`.
        optimizer_tangent: Tangents of the optimizer's state, its tensors `(B, P, …)`.
    """

    optimizer: Any
    params_tangent: Tensor
    optimizer_tangent: Any


class Forward(Estimator):
    """The gradient of the whole episode's outer loss, carried forwards in place of a graph backwards.

    With s parameters and optimizer state, and ṡ their tangent, the derivative along a direction v of the
    meta-parameters, an inner step s⁺ = F(s, φ) gives ṡ⁺ = ∂F/∂s · ṡ + ∂F/∂φ · v, and a window's outer loss has the
    slope ∇J · v = Σ_k ∂J/∂loss_k · ∇loss_k · ṡ_k. Tangents are kept from window to window, so that no window's gradient
    is cut at its start, and no graph outlives its inner step: memory grows neither with the window nor with the
    horizon. Inner gradients are differentiated (order 2).

    - `num_directions=None`: the D unit directions. Summed over an episode's windows at a fixed φ, the gradients are
      exactly that of the whole episode (real-time recurrent learning; the forward hypergradient).
    - `num_directions=n`: the forward gradient 1/n Σ_i (∇J · v_i) v_i with v_i ~ N(0, I), drawn from keys at the
      episode's start and kept. Unbiased for the same, without smoothing; its squared error is about (D + 1) / n times
      the squared length of the gradient.

    Time and memory are those of n (or D) tangents beside one trajectory. A problem's buffers count as constants, which
    running statistics are for a training loss; buffers that are differentiable in the parameters are refused.

    Args:
        num_directions: Random directions n >= 1, or None for all D unit directions.
        noise: `per_problem`: each problem has random directions of its own; `shared`: the same for all. Without effect
            if there are no random directions.

    Raises:
        ValueError: If an argument is out of range, or a problem's buffers depend on its parameters.

    References: Williams and Zipser 1989, "A learning algorithm for continually running fully recurrent neural
    networks"; Franceschi et al. 2017, "Forward and reverse gradient-based hyperparameter optimization" (arXiv
    1703.01785); Baydin et al. 2022, "Gradients without backpropagation" (arXiv 2202.08587); Silver et al. 2022,
    "Learning by directional gradient descent".
    """

    def __init__(self, *, num_directions: int | None = None, noise: Noise = "per_problem"):
        if num_directions is not None and (not isinstance(num_directions, int) or num_directions < 1):
            raise ValueError(
                f"estimator.num_directions={num_directions}: must be a whole number >= 1 (random directions), or null "
                "for all directions"
            )
        self.num_directions = num_directions
        self.noise: Noise = check_noise(noise)

    def start(self, optimizer: LearnedOptimizer, problem: Problem) -> Carry:
        """The problems' start, which does not depend on φ: all tangents are zero."""
        carry = super().start(optimizer, problem)
        count = self.num_directions or size(trained(optimizer))

        def zeros(x: Tensor) -> Tensor:
            return x.new_zeros(x.shape[0], count, *x.shape[1:])

        state = ForwardState(carry.state, zeros(carry.params.flat), map_state(zeros, carry.state))
        return Carry(carry.params, state, carry.buffers)

    def directions(self, problem: Problem, phi: Mapping[str, Tensor]) -> Tensor:
        """The episode's directions, `(B or 1, P, D)`."""
        if self.num_directions is not None:
            return draw(problem.keys, phi, 0, count=self.num_directions, noise=self.noise)
        like = next(iter(phi.values()))
        return torch.eye(size(phi), dtype=like.dtype, device=like.device)[None]

    def __call__(self, window: Window, executor: Executor = EAGER) -> Estimate:
        """See `Estimator.__call__`.

        Raises:
            CompileError: If the executor is not an eager one.
        """
        if not isinstance(executor, Eager):
            raise CompileError("estimator=forward: has no compiled form; use compile=false")
        directions = self.directions(window.problem, window.phi)
        steps = TangentSteps(window, split(directions.transpose(0, 1), window.phi))
        carry, losses = steps.unroll()
        outer, weights = value_and_weights(window.objective, losses)
        slope = torch.einsum("kb,kpb->bp", weights, torch.stack(steps.of_losses[1:]))
        if len(directions) == 1:
            slope = slope.sum(0, keepdim=True)
        flat = torch.einsum("bp,bpd->d", slope, directions) / (self.num_directions or 1)
        return Estimate(outer, split(flat, window.phi), carry, losses)


class _Moving(NamedTuple):
    """A carry with its tangents, which have the direction axis P in front."""

    carry: Carry
    params_tangent: Tensor
    state_tangent: Any


class TangentSteps(Steps[_Moving]):
    """The inner steps of a window with their tangents.

    Args:
        window: The window; its carry has a `ForwardState`.
        along: Directions of each meta-parameter, `(P, 1, *shape)`, or `(P, B, *shape)` for each problem its own.

    Attributes:
        of_losses: Tangents `(P, B)` of the losses before each step.
    """

    def __init__(self, window: Window, along: Mapping[str, Tensor]):
        super().__init__(window)
        params, state, buffers = window.carry
        tangents = _swapped(state.params_tangent), map_state(_swapped, state.optimizer_tangent)
        self.start = _Moving(Carry(params, state.optimizer, buffers), *tangents)
        self.of_losses: list[Tensor] = []
        self._is_shared = all(v.shape[1] == 1 for v in along.values())
        if self._is_shared:
            self._phi = {name: p.detach().requires_grad_() for name, p in window.phi.items()}
            self._along = [v[:, 0] for v in along.values()]
            self._update = flat_update(window.optimizer)
        else:
            count = window.problem.num_problems
            self._phi = {n: p.detach().expand(count, *p.shape).clone().requires_grad_() for n, p in window.phi.items()}
            self._along = list(along.values())
            self._update = per_problem(window.optimizer, self._phi)

    def unroll(self) -> tuple[Carry, Tensor]:
        if self._is_shared:
            return call_with(self._phi, self.window.optimizer, super().unroll)
        return super().unroll()

    def step(self, carry: _Moving, batch: Any) -> tuple[_Moving, Tensor]:
        (params, state, buffers), tangent, state_tangent = carry
        leaf = params.flat.detach().requires_grad_()
        loss, grads, after = value_and_gradient(
            self.window.problem, params.like(leaf), buffers, batch, create_graph=True
        )
        gradient, loss = grads.flat.detach(), loss.detach()
        of_loss = torch.einsum("bn,pbn->pb", gradient, tangent)
        self.of_losses.append(of_loss)
        tangents = (tangent, hessian_times(grads.flat, leaf, tangent), of_loss, *state_tensors(state_tangent))
        params, state, *moved = self._updated(params, params.like(gradient), loss, state, tangents)
        return _Moving(Carry(params, state, _constant(after)), *moved), loss

    def last_loss(self, carry: _Moving, batch: Any) -> Tensor:
        (params, _, buffers), tangent, _ = carry
        loss, grads, _ = value_and_gradient(self.window.problem, params, buffers, batch)
        self.of_losses.append(torch.einsum("bn,pbn->pb", grads.flat, tangent))
        return loss

    def plain(self, carry: _Moving) -> Carry:
        (params, state, buffers), tangent, state_tangent = carry
        return Carry(params, ForwardState(state, _swapped(tangent), map_state(_swapped, state_tangent)), buffers)

    def _updated(
        self, params: Params, grads: Params, loss: Tensor, state: Any, tangents: Sequence[Tensor]
    ) -> tuple[Params, Any, Tensor, Any]:
        """The optimizer's step, and the tangents of new parameters and state from those of all that it takes."""
        flat, gradient, loss = (x.detach().requires_grad_() for x in (params.flat, grads.flat, loss))
        state = as_leaves(state)
        with torch.enable_grad():
            new, after = self._update(params.like(flat), params.like(gradient), loss, state)
        inputs = [*self._phi.values(), flat, gradient, loss, *state_tensors(state)]
        vectors = [*self._along, *tangents]
        pairs = [(x, v) for x, v in zip(inputs, vectors, strict=True) if is_differentiable(x)]
        moved = iter(jacobian_times([new, *state_tensors(after)], [x for x, _ in pairs], [v for _, v in pairs]))
        new_tangent = next(moved)
        of_state = map_state(lambda _: next(moved), after)
        return params.like(new.detach()), map_state(Tensor.detach, after), new_tangent, of_state


def _swapped(x: Tensor) -> Tensor:
    """`(P, B, …)` → `(B, P, …)`, or back; contiguous, so that a carry out of a file rounds alike."""
    return x.transpose(0, 1).contiguous()


def _constant(buffers: Buffers) -> dict[str, Tensor]:
    for name, b in buffers.items():
        if b.requires_grad:
            raise ValueError(
                f"estimator=forward: the task's buffer {name} is differentiable in the parameters, but buffers count "
                "as constants here; detach it in the module, or take estimator=full or pes"
            )
    return {name: b.detach() for name, b in buffers.items()}
