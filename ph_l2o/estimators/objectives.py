"""Outer losses: what meta-training minimises, from the losses of a window of inner steps."""

from __future__ import annotations

import torch
from torch import Tensor

from ph_l2o.inner import Objective

EPS = 1e-9


def mean_log_loss(losses: Tensor) -> Tensor:
    """Mean over steps and problems of log(loss + 1e-9): problems of all scales count alike. Losses `(K, B)`, >= 0."""
    return (losses + EPS).log().mean()


def mean_loss(losses: Tensor) -> Tensor:
    """Mean over steps and problems. Losses `(K, B)`."""
    return losses.mean()


def final_loss(losses: Tensor) -> Tensor:
    """Mean over problems of the loss after the last step. Losses `(K, B)`."""
    return losses[-1].mean()


OBJECTIVES: dict[str, Objective] = {
    "mean_log_loss": mean_log_loss,
    "mean_loss": mean_loss,
    "final_loss": final_loss,
}


def value_and_weights(objective: Objective, losses: Tensor) -> tuple[Tensor, Tensor]:
    """The outer loss, and its slope in each loss, `(K, B)`."""
    with torch.enable_grad():
        leaf = losses.detach().requires_grad_()
        outer = objective(leaf)
        (weights,) = torch.autograd.grad(outer, leaf)
    return outer.detach(), weights
