"""Adam whose learning rate is found from the distance to the start."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ph_l2o.optimizers.classical import ClassicalOptimizer, decades, root
from ph_l2o.params import Params

_FIRST = 1e-6  # the estimate that it starts with


class ProdigyState(NamedTuple):
    """What Prodigy remembers.

    Attributes:
        distance: Estimate d of the distance to a solution, `(B,)`.
        numerator: Weighted sum of ⟨g, θ₀ - θ⟩, `(B,)`.
        start: θ₀, `(B, N)`.
        total: Weighted sum of the gradients, `(B, N)`.
        first: Average of d g, `(B, N)`.
        second: Average of d² g², `(B, N)`.
    """

    distance: Tensor
    numerator: Tensor
    start: Tensor
    total: Tensor
    first: Tensor
    second: Tensor


class Prodigy(ClassicalOptimizer):
    """Prodigy: Adam with learning rate lr d, d growing with ⟨Σ g, θ₀ - θ⟩ / ‖Σ g‖₁.

    Rule and defaults are those of the authors' package, `prodigyopt`, with its `safeguard_warmup`, which is for
    schedules that begin with a warm-up, as all here do: then the learning rate has no part in the sum of gradients.

    Args:
        lr: Factor of d, > 0; 1 is the method.
        beta1: Decay of the average of the gradient, in [0, 1).
        beta2: Decay of the average of its square, in [0, 1); √beta2 is that of the sums.
        eps: Times d, added to √v, >= 0.
        weight_decay: Decay of the parameters, in units of the learning rate, >= 0.

    Reference: Mishchenko and Defazio 2024, "Prodigy: an expeditiously adaptive parameter-free learner" (arXiv
    2306.06101).
    """

    grid: ClassVar[dict[str, tuple[float, ...]]] = {"lr": decades(-1, 1)}

    def __init__(
        self,
        *,
        lr: float = 1.0,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)

    def init(self, params: Params) -> ProdigyState:
        zero, none = torch.zeros_like(params.flat), torch.zeros_like(params.flat[:, 0])
        return ProdigyState(none + _FIRST, none, params.flat, zero, zero, zero)

    def update(
        self, params: Params, grads: Params, loss: Tensor | None, state: ProdigyState
    ) -> tuple[Params, ProdigyState]:
        return self.update_at(torch.ones_like(params.flat[:, :1]), params, grads, loss, state)

    def update_at(
        self, factor: Tensor, params: Params, grads: Params, loss: Tensor | None, state: ProdigyState
    ) -> tuple[Params, ProdigyState]:
        """A step at a learning rate that is multiplied by `factor`, `(B, 1)`."""
        h, flat, grad, d = self.hyperparameters, params.flat, grads.flat, state.distance[:, None]
        rate, decay = factor * h["lr"] * d, h["beta2"].sqrt()
        product = (grad * (state.start - flat)).sum(1, keepdim=True)
        numerator = decay * state.numerator[:, None] + d / _FIRST * rate * product
        total = decay * state.total + d / _FIRST * d * grad
        first = torch.lerp(d * grad, state.first, h["beta1"])
        second = torch.lerp((d * grad).square(), state.second, h["beta2"])
        size = total.abs().sum(1, keepdim=True)
        moves = size > 0  # else no gradient has been seen
        found = torch.maximum(d, numerator / torch.where(moves, size, 1.0))
        step = rate * (first / (root(second) + found * h["eps"]) + h["weight_decay"] * flat)
        new = torch.where(moves, flat - step, flat)
        return params.like(new), ProdigyState(found[:, 0], numerator[:, 0], state.start, total, first, second)
