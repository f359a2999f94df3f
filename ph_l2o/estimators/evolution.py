"""What the evolution strategies share: perturbations from keys, antithetic pairs, and the estimate from their losses.

For n antithetic pairs with standard normal draws z_i of the D meta-parameters, particles run under φ ± σ z_i, and

    gradient = 1/n Σ_i (J⁺_i - J⁻_i) / (2σ) · w_i,

the mean over problems, where J± are a window's outer losses. The estimators differ in which draw a window uses, where
its particles start, and in the weight w_i.

Several processes have to tell each other only the scalars J±, since each can make everybody's draws from their keys
(Salimans et al. 2017, arXiv 1703.03864, section 2.1).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from functools import lru_cache
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from ph_l2o.estimators.directions import Noise, check_noise, draw
from ph_l2o.estimators.estimator import Estimate, Estimator
from ph_l2o.estimators.exchange import gathered, keys_of_all, num_processes
from ph_l2o.inner import EAGER, Carry, Executor, Objective, Window, start
from ph_l2o.inner.meta_parameters import join, size, split, trained
from ph_l2o.keys import ProblemKeys
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.tasks.task import Problem


class EvolutionStrategy(Estimator):
    """Base of the evolution strategies; see the module's text.

    Nothing is differentiated in the meta-parameters and no graph is kept, so memory does not grow with the window.
    Draws come from keys: they are the same after a resume and under any number of processes. The outer loss must be a
    mean over problems.

    Args:
        num_pairs: Antithetic pairs of perturbations, n >= 1; for each problem, or for all.
        sigma: Standard deviation σ > 0 of a perturbation of each meta-parameter.
        noise: `per_problem` draws perturbations for each problem of the batch, which averages over more of them at the
            same number of inner steps; `shared` has the same ones for all problems.
        exchange: What several processes tell each other. `scalars`: the outer losses of all particles; each process
            makes the draws for all problems and computes the same gradient. `gradient`: each computes the gradient of
            its own problems, and these are averaged.

    Raises:
        ValueError: If an argument is out of range.
    """

    has_compiled_form: ClassVar[bool] = True

    def __init__(
        self,
        *,
        num_pairs: int = 1,
        sigma: float = 0.01,
        noise: Literal["shared", "per_problem"] = "per_problem",
        exchange: Literal["scalars", "gradient"] = "scalars",
    ):
        if not isinstance(num_pairs, int) or num_pairs < 1:
            raise ValueError(f"estimator.num_pairs={num_pairs}: must be a whole number >= 1 (antithetic pairs)")
        if not 0 < sigma < math.inf:
            raise ValueError(f"estimator.sigma={sigma}: must be > 0 and finite (standard deviation of a perturbation)")
        if exchange not in ("scalars", "gradient"):
            raise ValueError(f"estimator.exchange={exchange}: must be scalars or gradient")
        self.num_pairs, self.sigma, self.exchange = num_pairs, sigma, exchange
        self.noise: Noise = check_noise(noise)

    @property
    def averages_processes(self) -> bool:
        return self.exchange == "scalars"

    def weighted_keys(self, problem: Problem) -> ProblemKeys:
        """Keys of the problems over which `gradient` runs: those of all processes, or of this one."""
        return keys_of_all(problem.keys) if self.exchange == "scalars" else problem.keys

    def own(self, draws: Tensor, problem: Problem) -> Tensor:
        """This process's rows among draws that were made for `weighted_keys`."""
        if self.noise == "shared" or len(draws) == len(problem.keys):
            return draws
        return draws[problem.keys.indices[0] :][: len(problem.keys)]

    def draws(self, problem: Problem, step: int, phi: Mapping[str, Tensor]) -> Tensor:
        """Standard normal draws of this process's problems that belong to an inner step.

        Args:
            problem: The problems, for their keys.
            step: Number of the inner step.
            phi: The meta-parameters.

        Returns:
            Tensor of shape `(B, num_pairs, D)`, or `(1, num_pairs, D)` with shared noise.
        """
        return self.draws_of(problem.keys, step, phi)

    def draws_of(self, keys: ProblemKeys, step: int, phi: Mapping[str, Tensor]) -> Tensor:
        """As `draws`, for the problems of any keys."""
        return draw(keys, phi, step, count=self.num_pairs, noise=self.noise)

    def particles(self, phi: Mapping[str, Tensor], draws: Tensor, *, centre: bool) -> dict[str, Tensor]:
        """Meta-parameters φ + σ z_i, then φ - σ z_i, then φ itself with `centre`: `(P, B or 1, *shape)` by name."""
        draws = draws.transpose(0, 1)
        signed = torch.cat([draws, -draws, *([torch.zeros_like(draws[:1])] if centre else [])])
        return split(torch.add(join(phi), signed, alpha=self.sigma), phi)

    def gradient(self, phi: Mapping[str, Tensor], outer: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """The estimate from this process's outer losses `(P, B)` and the weights of `weighted_keys`.

        The weights have the shape `(W·B or 1, num_pairs, D)` where W processes exchange scalars, else with W = 1.
        """
        if self.exchange == "scalars":
            outer = gathered(outer)
        n, problems = self.num_pairs, outer.shape[1]
        slope = (outer[:n] - outer[n : 2 * n]) / (2 * self.sigma * n * problems)
        return split(torch.einsum("nb,bnd->d", slope, weights.expand(problems, -1, -1)), phi)


def outer_losses(objective: Objective, losses: Tensor) -> Tensor:
    """The objective of each particle and problem: `(K, P, B)` → `(P, B)`."""
    flat = vmap(lambda one: objective(one[:, None]), in_dims=1)(losses.flatten(1))
    return flat.view(losses.shape[1:])


class ParticleState(NamedTuple):
    """State of a carry with particles, which between windows have the problem axis in front.

    Attributes:
        optimizer: The optimizer's state, tensors of shape `(B, P, …)`.
        perturbation: Sum of the standard normal draws so far, `(B, num_pairs, D)` for D meta-parameters.
    """

    optimizer: Any
    perturbation: Tensor


class PersistentStrategy(EvolutionStrategy):
    """Base of the strategies whose particles keep inner states of their own over the windows of an episode.

    A new draw z is made at the inner steps that are multiples of `reuse_for` a window, and a window's weight w_i is the
    sum of the draws since the episode's start. The particles' mean losses are what is reported, since no particle runs
    under φ.
    """

    def reuse_for(self, count: int) -> int | None:
        """Inner steps for which a perturbation is kept where windows have `count`; None for the whole episode."""
        del count
        return None

    def start(self, optimizer: LearnedOptimizer, problem: Problem) -> Carry:
        """All particles at the problems' start."""
        carry = swap_axes(repeat(start(optimizer, problem), 2 * self.num_pairs))
        phi = trained(optimizer)
        total = next(iter(phi.values())).new_zeros(problem.num_problems, self.num_pairs, size(phi))
        return Carry(carry.params, ParticleState(carry.state, total.detach()), carry.buffers)

    def __call__(self, window: Window, executor: Executor = EAGER) -> Estimate:
        phi, carry, reuse = window.phi, window.carry, self.reuse_for(window.count)
        drawn_at = 0 if reuse is None else window.first // reuse * reuse
        keys = self.weighted_keys(window.problem)
        draws = self.draws_of(keys, drawn_at, phi)
        own, total = self.own(draws, window.problem), carry.state.perturbation
        if window.first == drawn_at:
            total = total + own
        moved = self.particles(phi, own, centre=False)
        inner = swap_axes(Carry(carry.params, carry.state.optimizer, carry.buffers))
        inner, losses = executor.particles(window._replace(phi=moved, carry=inner)).unroll()
        inner = swap_axes(inner)
        carry = Carry(inner.params, ParticleState(inner.state, total), inner.buffers)
        outer = outer_losses(window.objective, losses)
        if num_processes() > 1 and keys is not window.problem.keys:
            total = self._sum(keys, drawn_at, draws, phi, reuse or 1)
        return Estimate(outer.mean(), self.gradient(phi, outer, total), carry, losses.mean(1))

    def _sum(self, keys: ProblemKeys, drawn_at: int, draws: Tensor, phi: Mapping[str, Tensor], every: int) -> Tensor:
        """Sum of the draws, one for `every` steps, for all processes' problems up to `drawn_at`, whose own are given.

        A function of its arguments: the last sum is only there to be added to. After a resume it is made anew, in the
        same order and so with the same rounding.
        """
        known = _known_sum(keys, every, self.num_pairs, self.noise, size(phi), draws.dtype, draws.device)
        if drawn_at not in known:
            before = known.get(drawn_at - every)
            if before is None:
                before = sum(self.draws_of(keys, step, phi) for step in range(0, drawn_at, every))
            known.clear()
            known[drawn_at] = before + draws
        return known[drawn_at]


@lru_cache(maxsize=32)  # more than episodes that are under way at once
def _known_sum(keys: ProblemKeys, *drawn: Hashable) -> dict[int, Tensor]:
    """Where the sum of an episode's draws is kept, by the step of the last of them."""
    del keys, drawn
    return {}


def repeat(carry: Carry, num_particles: int) -> Carry:
    """P particles at one carry: tensors `(B, …)` → `(P, B, …)`."""
    return carry.map(lambda x: x.expand(num_particles, *x.shape).contiguous())


def swap_axes(carry: Carry) -> Carry:
    """Tensors `(P, B, …)` → `(B, P, …)`, or back."""
    # Contiguous, so that a carry out of a file has the same layout, and kernels the same rounding.
    return carry.map(lambda x: x.transpose(0, 1).contiguous())
