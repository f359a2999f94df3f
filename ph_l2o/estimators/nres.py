"""Noise-reuse evolution strategies."""

from __future__ import annotations

from typing import Literal

from ph_l2o.estimators.evolution import PersistentStrategy


class NRES(PersistentStrategy):
    """Noise-reuse evolution strategies, with the family around it, generalised PES (GPES).

    GPES draws a perturbation anew every `reuse` inner steps and weights a window by the sum of the draws so far:

        gradient = 1/n Σ_i (z_i,1 + … + z_i,m) (J_t⁺ - J_t⁻) / (2σ),  m draws up to window t.

    NRES is the end at which a window's estimate has the least variance, one draw reused for the whole episode
    (`reuse=None`); the other end is PES, whose draws last for a window. All are unbiased for the whole episode's outer
    loss, smoothed by a perturbation that is constant for `reuse` steps.

    With one draw for an episode the formula is that of `ESSingle`. What the paper adds is the family in between, and
    workers that are at different windows of their episodes at the same time ("step-unlocked"); here all problems of
    a batch start an episode together, so of the two differences only the first exists.

    Further arguments are those of `EvolutionStrategy`.

    Args:
        reuse: Inner steps for which a draw is reused, a multiple of the truncation; None for the whole episode.

    Raises:
        ValueError: If an argument is out of range.

    Reference: Li, Harrison, Sohl-Dickstein, Smith and Metz 2023, "Variance-reduced gradient estimation via noise-reuse
    in online evolution strategies" (arXiv 2304.12180).
    """

    def __init__(
        self,
        *,
        num_pairs: int = 1,
        sigma: float = 0.01,
        noise: Literal["shared", "per_problem"] = "per_problem",
        exchange: Literal["scalars", "gradient"] = "scalars",
        reuse: int | None = None,
    ):
        super().__init__(num_pairs=num_pairs, sigma=sigma, noise=noise, exchange=exchange)
        if reuse is not None and reuse < 1:
            raise ValueError(f"estimator.reuse={reuse}: must be >= 1 (inner steps), or null for the whole episode")
        self.reuse = reuse

    def window_length(self, truncation: int, horizon: int) -> int:
        """The truncation, which must divide `reuse`."""
        self.reuse_for(truncation)
        return super().window_length(truncation, horizon)

    def reuse_for(self, count: int) -> int | None:
        """`reuse`, which must be a multiple of a window's inner steps."""
        if self.reuse is not None and self.reuse % count:
            raise ValueError(
                f"estimator.reuse={self.reuse}: must be a multiple of meta.truncation={count}, or null for the whole "
                "episode"
            )
        return self.reuse
