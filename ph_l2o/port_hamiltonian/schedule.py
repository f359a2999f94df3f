"""A factor of the learned learning rates over time."""

from __future__ import annotations

from typing import NamedTuple

from ph_l2o.optimizers.scheduled import WARM_UP
from ph_l2o.port_hamiltonian.arithmetic import Number, arithmetic

_SCALE, _POWER = 500, 0.5  # of the fall beside the linear one, which long runs on noisy losses need


class Anytime(NamedTuple):
    """The course of rates in runs whose length nobody knows.

    Attributes:
        warmup_steps: Steps of the linear rise, W.
        decay: K and p, or None.
    """

    warmup_steps: int = 0
    decay: tuple[float, float] | None = None

    def factor(self, step: Number) -> Number:
        """The factor of step k = 1, 2, …: min(1, k / (W + 1)) (1 + (k - 1) / K)^-p."""
        xp = arithmetic(step)
        rising = xp.clip(step / (self.warmup_steps + 1), 0.0, 1.0)
        return rising * xp.exp(-self.decay[1] * xp.log(1 + (step - 1) / self.decay[0])) if self.decay else rising


def factor(step: Number, total_steps: Number, anytime: Anytime) -> Number:
    """The factor of step k = 1, 2, …

    Over a run of T = `total_steps`, with W = round(.05 T) steps of warm-up, it is k / (W + 1) for k <= W, then, for the
    steps s = k - 1 - W since, (1 - s / (T - W)) (1 + s / 500)^(-1/2), and 0 after T: that of `adamw+linear` ("Straight
    to zero", Bergsma et al. 2025, arXiv 2502.15938), in long runs less. With T = 0, of a run whose length nobody knows,
    it is that of `anytime`: with p in (½, 1] or near it, stochastic gradients come to rest however long the run is
    (Robbins and Monro 1951).
    """
    xp = arithmetic(step)
    rise = xp.round(WARM_UP * total_steps)
    since = xp.at_least(step - 1 - rise, 0)
    falling = 1 - xp.clip(since / xp.at_least(total_steps - rise, 1), 0.0, 1.0)
    falling = xp.where(step <= total_steps, falling, 0 * step) * xp.exp(-_POWER * xp.log(1 + since / _SCALE))
    return xp.where(total_steps > 0, xp.where(step <= rise, step / (rise + 1), falling), anytime.factor(step))
