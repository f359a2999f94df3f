"""Losses of unlike tasks, made comparable."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_RELATIVE_EPS = 1e-4


def relative_score(losses: Tensor) -> Tensor:
    """Mean over steps and problems of log((f_k + ε f_0) / f_0), ε = 1e-4: comparable between tasks.

    Each logarithm is held in ± log ε, and one that is not finite counts as the worst, so that a mixture's score stays
    finite where a problem diverges.

    Args:
        losses: f_0 … f_T of shape `(T + 1, B)`, >= 0.
    """
    losses, tiny = losses.double(), torch.finfo(torch.float64).tiny  # for problems that start at 0
    logs = ((losses[1:] + _RELATIVE_EPS * losses[0] + tiny) / (losses[0] + tiny)).log()
    worst = -math.log(_RELATIVE_EPS)
    return logs.nan_to_num(worst, worst).clamp(-worst, worst).mean()
