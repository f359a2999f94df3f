"""Forward-mode meta-gradients: derivatives that run along with the inner loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ph_l2o.estimators.directions import Noise, check_noise, draw, size, split
from ph_l2o.estimators.estimator import Estimate, Estimator
from ph_l2o.estimators.particles import Update, per_problem
from ph_l2o.estimators.swap import call_with
from ph_l2o.estimators.tangents import as_leaves, flatten, hessian_times, is_differentiable, jacobian_times
from ph_l2o.inner import Carry, Window, value_and_gradient
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
        count = self.num_directions or size(dict(optimizer.named_parameters()))

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

    def __call__(self, window: Window) -> Estimate:
        """See `Estimator.__call__`."""
        optimizer, phi, problem, carry, first, steps, objective = window
        directions = self.directions(problem, phi)
        along = split(directions.transpose(0, 1), phi)
        if len(directions) == 1:
            leaves = {name: p.detach().requires_grad_() for name, p in phi.items()}
            sweep = _Sweep(problem, leaves, {name: v[:, 0] for name, v in along.items()})
            carry, losses, slopes = call_with(leaves, optimizer, sweep.shared, carry, first, steps)
        else:
            count = problem.num_problems
            leaves = {name: p.detach().expand(count, *p.shape).clone().requires_grad_() for name, p in phi.items()}
            sweep = _Sweep(problem, leaves, along)
            carry, losses, slopes = sweep.run(per_problem(optimizer, leaves), carry, first, steps)

        with torch.enable_grad():
            leaf = losses.detach().requires_grad_()
            outer = objective(leaf)
        (weights,) = torch.autograd.grad(outer, leaf)
        slope = torch.einsum("kb,kpb->bp", weights, slopes)
        if len(directions) == 1:
            slope = slope.sum(0, keepdim=True)
        flat = torch.einsum("bp,bpd->d", slope, directions) / (self.num_directions or 1)
        return Estimate(outer.detach(), split(flat, phi), carry, losses)


class _Sweep:
    """One window of inner steps with its tangents, which have the direction axis P in front here.

    Args:
        problem: The problems.
        phi: Meta-parameters as leaves, `(*shape)` or `(B, *shape)`.
        along: Directions of each, `(P, *shape)` or `(P, B, *shape)`.
    """

    def __init__(self, problem: Problem, phi: Mapping[str, Tensor], along: Mapping[str, Tensor]):
        self.problem, self.phi, self.along = problem, list(phi.values()), list(along.values())

    def shared(self, optimizer: LearnedOptimizer, carry: Carry, first: int, count: int) -> tuple[Carry, Tensor, Tensor]:
        """A window in which all problems have the same meta-parameters, those that the optimizer has."""

        def update(params: Params, grads: Params, loss: Tensor, state: Any) -> tuple[Tensor, Any]:
            after, state = optimizer.update(params, grads, loss, state)
            return after.flat, state

        return self.run(update, carry, first, count)

    def run(self, update: Update, carry: Carry, first: int, count: int) -> tuple[Carry, Tensor, Tensor]:
        """The last carry, and losses `(K, B)` after each step with their tangents `(K, P, B)`."""
        params, state, buffers = carry.params, carry.state.optimizer, carry.buffers
        tangent = _swapped(carry.state.params_tangent)
        state_tangent = map_state(_swapped, carry.state.optimizer_tangent)
        losses: list[Tensor] = []
        slopes: list[Tensor] = []
        for step, batch in enumerate(self.problem.batches(first, count + 1)):
            loss, grads, after, of_loss, of_grads = self._gradient(params, buffers, batch, tangent, last=step == count)
            losses.append(loss)
            slopes.append(of_loss)
            if step < count:
                at, moving = (params, grads, loss, state), (tangent, of_grads, of_loss, state_tangent)
                params, state, tangent, state_tangent = self._step(update, at, moving)
                buffers = after
        kept = ForwardState(state, _swapped(tangent), map_state(_swapped, state_tangent))
        return Carry(params, kept, buffers), torch.stack(losses[1:]), torch.stack(slopes[1:])

    def _gradient(
        self, params: Params, buffers: Buffers, batch: Any, tangent: Tensor, *, last: bool
    ) -> tuple[Tensor, Params, Buffers, Tensor, Tensor]:
        """Losses, gradients, next buffers, and the tangents of losses and gradients (zeros for the last)."""
        leaf = params.flat.detach().requires_grad_()
        loss, grads, after = value_and_gradient(self.problem, params.like(leaf), buffers, batch, create_graph=not last)
        gradient = grads.flat.detach()
        of_loss = torch.einsum("bn,pbn->pb", gradient, tangent)
        of_grads = torch.zeros_like(tangent) if last else hessian_times(grads.flat, leaf, tangent)
        return loss.detach(), params.like(gradient), _constant(after), of_loss, of_grads

    def _step(
        self, update: Update, at: tuple[Params, Params, Tensor, Any], tangents: tuple[Tensor, Tensor, Tensor, Any]
    ) -> tuple[Params, Any, Tensor, Any]:
        """The optimizer's step from parameters, gradients, losses and state, and its tangents."""
        params, grads, loss, state = at
        flat, grad, loss = (x.detach().requires_grad_() for x in (params.flat, grads.flat, loss))
        state = as_leaves(state)
        with torch.enable_grad():
            new, after = update(params.like(flat), params.like(grad), loss, state)
        inputs = [*self.phi, flat, grad, loss, *flatten(state)]
        vectors = [*self.along, *tangents[:3], *flatten(tangents[3])]
        pairs = [(x, v) for x, v in zip(inputs, vectors, strict=True) if is_differentiable(x)]
        moved = iter(jacobian_times([new, *flatten(after)], [x for x, _ in pairs], [v for _, v in pairs]))
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
