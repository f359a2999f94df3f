"""Evolution strategies with a single perturbation for each episode."""

from __future__ import annotations

from ph_l2o.estimators.evolution import PersistentStrategy


class ESSingle(PersistentStrategy):
    """ES-Single: one perturbation of a particle for the whole episode, never summed.

    A particle keeps its own inner state over the windows, under the draw z_i made at the episode's start:

        gradient = 1/n Σ_i z_i (J_t⁺ - J_t⁻) / (2σ).

    Summed over an episode's windows this is antithetic evolution strategies on the whole episode, so it is unbiased
    for the outer loss smoothed by N(0, σ²I), with a variance that does not depend on the number of windows.

    For episodes that all problems start together, as here, it coincides with `NRES` at its default of one draw for an
    episode: the same keys give the same numbers. The papers arrive there from different sides, and differ in what
    varies around it; see `NRES`.

    Arguments are those of `EvolutionStrategy`.

    Reference: Vicol, Kolter and Swersky 2023, "Low-variance gradient estimation in unrolled computation graphs with
    ES-Single" (arXiv 2304.11153).
    """
