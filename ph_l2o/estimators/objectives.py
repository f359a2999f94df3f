"""Outer losses: what meta-training minimises, from the losses of a window of inner steps."""

from __future__ import annotations

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
