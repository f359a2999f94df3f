"""Evolution strategies on a truncation window."""

from __future__ import annotations

from ph_l2o.estimators.estimator import Estimate
from ph_l2o.estimators.evolution import EvolutionStrategy, outer_losses, repeat
from ph_l2o.inner import EAGER, Executor, Window


class ES(EvolutionStrategy):
    """Antithetic evolution strategies, with fresh perturbations in each window.

    All particles of a window start from the carry that φ itself left, which costs one unperturbed particle more:

        gradient = 1/n Σ_i z_i (J(φ + σ z_i) - J(φ - σ z_i)) / (2σ),  z_i ~ N(0, I).

    It is unbiased for the window's outer loss smoothed by N(0, σ²I), with the carry held constant. So it has the bias
    of `Truncated` where an episode has several windows, and none with one window.

    Arguments are those of `EvolutionStrategy`.

    References: Salimans et al. 2017, "Evolution strategies as a scalable alternative to reinforcement learning" (arXiv
    1703.03864); on truncation windows, Metz et al. 2019 (arXiv 1810.10180) and Vicol, Metz and Sohl-Dickstein 2021,
    section 3 (arXiv 2112.13835).
    """

    def __call__(self, window: Window, executor: Executor = EAGER) -> Estimate:
        problem, phi, objective = window.problem, window.phi, window.objective
        draws = self.draws_of(self.weighted_keys(problem), window.first, phi)
        moved = self.particles(phi, self.own(draws, problem), centre=True)
        carry = repeat(window.carry, 2 * self.num_pairs + 1)
        carry, losses = executor.particles(window._replace(phi=moved, carry=carry)).unroll()
        centre = losses[:, -1].contiguous()
        gradient = self.gradient(phi, outer_losses(objective, losses), draws)
        return Estimate(objective(centre), gradient, carry.map(lambda x: x[-1].clone()), centre)
