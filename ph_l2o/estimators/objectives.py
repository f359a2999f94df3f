"""Outer losses: what meta-training minimises, from the losses of a window of inner steps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ph_l2o.inner import Objective

EPS = 1e-9
_DIVERGED = math.exp(20.0)


def mean_log_loss(losses: Tensor) -> Tensor:
    """Mean over steps and problems of log(loss + 1e-9): problems of all scales count alike. Losses `(K, B)`, >= 0."""
    return (losses + EPS).log().mean()


def mean_loss(losses: Tensor) -> Tensor:
    """Mean over steps and problems. Losses `(K, B)`."""
    return losses.mean()


def final_loss(losses: Tensor) -> Tensor:
    """Mean over problems of the loss after the last step. Losses `(K, B)`."""
    return losses[-1].mean()


def late_log_loss(losses: Tensor) -> Tensor:
    """Mean over problems of log(loss + 1e-9), with the mean loss of the last tenth of the steps. Losses `(K, B)`, >= 0.

    For windows that are whole episodes. What is not finite, or more, counts as a loss of e²⁰, so that a particle that
    diverges is worse than all others, and not left out.
    """
    late = losses[-max(1, len(losses) // 10) :].mean(0)
    return torch.where(torch.isfinite(late), late, _DIVERGED).clamp_max(_DIVERGED).add(EPS).log().mean()


OBJECTIVES: dict[str, Objective] = {
    "mean_log_loss": mean_log_loss,
    "mean_loss": mean_loss,
    "final_loss": final_loss,
    "late_log_loss": late_log_loss,
}


def value_and_weights(objective: Objective, losses: Tensor) -> tuple[Tensor, Tensor]:
    """The outer loss, and its slope in each loss, `(K, B)`."""
    with torch.enable_grad():
        leaf = losses.detach().requires_grad_()
        outer = objective(leaf)
        (weights,) = torch.autograd.grad(outer, leaf)
    return outer.detach(), weights
