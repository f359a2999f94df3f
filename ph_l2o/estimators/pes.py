"""Persistent evolution strategies."""

from __future__ import annotations

from ph_l2o.estimators.evolution import PersistentStrategy


class PES(PersistentStrategy):
    """Persistent evolution strategies: a fresh perturbation in each window, and their sum as the weight.

    A particle keeps its own inner state over the windows of an episode, and the sum of what has perturbed it. In
    window t, with z_i,1 … z_i,t the draws so far,

        gradient = 1/n Σ_i (z_i,1 + … + z_i,t) (J_t⁺ - J_t⁻) / (2σ),

    where J_t± are the window's outer losses of the particles under φ ± σ z_i,t (the paper's equation for ĝ_PES,
    with antithetic pairs). Summed over the windows it is unbiased for the gradient of the whole episode's smoothed
    outer loss, in which each window's φ has a perturbation of its own. The variance of a window's estimate grows with
    the windows before it.

    Arguments are those of `EvolutionStrategy`.

    Reference: Vicol, Metz and Sohl-Dickstein 2021, "Unbiased gradient estimation in unrolled computation graphs with
    persistent evolution strategies" (arXiv 2112.13835), algorithm 2.
    """

    def reuse_for(self, count: int) -> int:
        """A window."""
        return count
