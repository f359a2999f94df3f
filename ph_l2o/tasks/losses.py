"""Losses `(B,)` of outputs `(B, …, classes)` or `(B, batch, 1)` and targets: means over all but the first axis."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_SMOOTHING = 0.1


def _is_label(logits: Tensor, labels: Tensor) -> Tensor:
    # A comparison, since `one_hot` looks at the values, which no compiled or traced step can.
    return labels[..., None] == torch.arange(logits.shape[-1], device=labels.device)


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of labels `(B, …)`; a product is cheaper than a gather."""
    return (logits.log_softmax(-1) * _is_label(logits, labels)).flatten(1).sum(1) / -labels[0].numel()


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with smoothed labels.

    With smoothing s, the target is 1 - s for the label, and s / classes more for every class (Szegedy et al. 2016).
    """
    logs = logits.log_softmax(-1)
    chosen = (logs * _is_label(logits, labels)).sum(-1)
    return -((1 - smoothing) * chosen + smoothing * logs.mean(-1)).flatten(1).mean(1)


def smoothed(logits: Tensor, labels: Tensor) -> Tensor:
    """Kullback-Leibler divergence from labels smoothed by 0.1: their cross-entropy, less the least it can be."""
    other = _SMOOTHING / logits.shape[-1]
    own = 1 - _SMOOTHING + other
    entropy = -own * math.log(own) - (logits.shape[-1] - 1) * other * math.log(other)
    return cross_entropy(logits, labels, _SMOOTHING) - entropy


def hinge(logits: Tensor, labels: Tensor) -> Tensor:
    """Squared margin violations of all other classes, (1 - z_y + z_j)₊² (Weston and Watkins 1999)."""
    chosen = _is_label(logits, labels)
    own = (logits * chosen).sum(-1, keepdim=True)
    return ((1 - own + logits).clamp_min(0).square() * ~chosen).sum(-1).mean(1)


def huber(outputs: Tensor, targets: Tensor) -> Tensor:
    """Quadratic up to a deviation of 1, linear beyond it (Huber 1964)."""
    size = (outputs[..., 0] - targets).abs()
    return torch.where(size < 1, 0.5 * size.square(), size - 0.5).mean(1)


def ranking(outputs: Tensor, targets: Tensor) -> Tensor:
    """Logistic loss of all pairs of the batch that are out of order (Burges et al. 2005)."""
    scores = outputs[..., 0]
    order = torch.sign(targets[:, :, None] - targets[:, None, :])
    pairs = F.softplus(-order * (scores[:, :, None] - scores[:, None, :])) * (order != 0)
    return pairs.sum((1, 2)) / (order != 0).sum((1, 2)).clamp_min(1)


OF_CLASSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": cross_entropy,
    "smoothed": smoothed,
    "hinge": hinge,
}
OF_NUMBERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"huber": huber, "ranking": ranking}
