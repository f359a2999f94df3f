"""AdamW without a schedule: the average of the iterates takes its place."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ph_l2o.optimizers.classical import ClassicalOptimizer, decades, root
from ph_l2o.params import Params


class ScheduleFreeState(NamedTuple):
    """What schedule-free AdamW remembers.

    Attributes:
        step: Steps done, `(B,)`.
        total: Sum of the weights of the average, `(B,)`.
        highest: Highest learning rate so far, `(B,)`.
        base: z, `(B, N)`.
        second: Average of the squared gradient, `(B, N)`.
    """

    step: Tensor
    total: Tensor
    highest: Tensor
    base: Tensor
    second: Tensor


class ScheduleFreeAdamW(ClassicalOptimizer):
    """Schedule-free AdamW: gradients are taken at y, steps at z, and the average x of z is what is used in the end.

    z ← z - lr d with d = g / (√v̂ + eps) + weight_decay y; x ← (1 - c) x + c z, c the newest z's share in the average,
    weighted by squares of the highest learning rate so far; y = (1 - beta1) z + beta1 x. The parameters are y;
    `readout` gives x. Rule and defaults are those of the authors' package, `schedulefree`.

    Args:
        lr: Learning rate, > 0.
        beta1: Share of x in y, in (0, 1).
        beta2: Decay of v, in [0, 1).
        eps: Added to √v̂, >= 0.
        weight_decay: Decay of the parameters, in units of the learning rate, >= 0.

    Reference: Defazio et al. 2024, "The road less scheduled" (arXiv 2405.15682).
    """

    reads_out: ClassVar[bool] = True
    grid: ClassVar[dict[str, tuple[float, ...]]] = {"lr": decades(-3.5, 0.5)}

    def __init__(
        self,
        *,
        lr: float = 0.0025,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)

    def init(self, params: Params) -> ScheduleFreeState:
        none = torch.zeros_like(params.flat[:, 0])
        return ScheduleFreeState(none, none, none, params.flat, torch.zeros_like(params.flat))

    def update(
        self, params: Params, grads: Params, loss: Tensor | None, state: ScheduleFreeState
    ) -> tuple[Params, ScheduleFreeState]:
        return self.update_at(torch.ones_like(params.flat[:, :1]), params, grads, loss, state)

    def update_at(
        self, factor: Tensor, params: Params, grads: Params, loss: Tensor | None, state: ScheduleFreeState
    ) -> tuple[Params, ScheduleFreeState]:
        """A step at a learning rate that is multiplied by `factor`, `(B, 1)`."""
        h, step = self.hyperparameters, state.step[:, None] + 1
        rate = factor * h["lr"]
        highest = torch.maximum(state.highest[:, None], rate)
        total = state.total[:, None] + highest.square()
        share = highest.square() / total
        second = torch.lerp(grads.flat.square(), state.second, h["beta2"])
        spread = root(second) / (1 - h["beta2"] ** step).sqrt() + h["eps"]
        direction = grads.flat / spread + h["weight_decay"] * params.flat
        flat = torch.lerp(params.flat, state.base, share) + rate * (h["beta1"] * (1 - share) - 1) * direction
        base = state.base - rate * direction
        return params.like(flat), ScheduleFreeState(step[:, 0], total[:, 0], highest[:, 0], base, second)

    def readout(self, params: Params, state: ScheduleFreeState) -> Params:
        """The average x."""
        return params.like(torch.lerp(params.flat, state.base, 1 - 1 / self.hyperparameters["beta1"]))
