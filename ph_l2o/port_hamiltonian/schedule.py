"""A factor of the learned learning rates over time."""

from __future__ import annotations

import math

from ph_l2o.optimizers.scheduled import WARM_UP
from ph_l2o.port_hamiltonian.arithmetic import Number, arithmetic


def factor(step: Number, total_steps: int | None, decay: tuple[float, float] | None) -> Number:
    """The factor of step k = 1, 2, …

    Over a run of T = `total_steps` it is that of `adamw+cosine`: with W = round(.05 T) steps of warm-up k / (W + 1) for
    k <= W, then ½ (1 + cos(π (k - 1 - W) / (T - W))), and 0 after T. Without T it is (1 + (k - 1) / K)^-p for
    the `decay` (K, p): with p in (½, 1] or near it, stochastic gradients come to rest however long the run is (Robbins
    and Monro 1951). Without both it is 1.
    """
    xp = arithmetic(step)
    if total_steps is None:
        return xp.exp(-decay[1] * xp.log(1 + (step - 1) / decay[0])) if decay else 0 * step + 1.0
    rise = round(WARM_UP * total_steps)
    progress = xp.clip((step - 1 - rise) / max(total_steps - rise, 1), 0.0, 1.0)
    falling = 0.5 * (1 + xp.cos(math.pi * progress))
    return xp.where(step <= rise, step / (rise + 1), xp.where(step <= total_steps, falling, 0.0))
