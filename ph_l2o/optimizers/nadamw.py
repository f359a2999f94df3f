"""Adam with Nesterov's momentum and decoupled weight decay."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ph_l2o.optimizers.classical import ClassicalOptimizer, decades, root
from ph_l2o.params import Params


class NAdamWState(NamedTuple):
    """What NAdamW remembers.

    Attributes:
        step: Steps done, `(B,)`.
        product: μ_1 ⋯ μ_t, `(B,)`.
        first: Average of the gradient, `(B, N)`.
        second: Average of the squared gradient, `(B, N)`.
    """

    step: Tensor
    product: Tensor
    first: Tensor
    second: Tensor


class NAdamW(ClassicalOptimizer):
    """NAdamW, by the rule of `torch.optim.NAdam(decoupled_weight_decay=True)`.

    θ ← (1 - lr weight_decay) θ - lr ((1 - μ_t) g / (1 - μ_1 ⋯ μ_t) + μ_{t+1} m / (1 - μ_1 ⋯ μ_{t+1})) / (√v̂ + eps),
    with Adam's averages m and v, and μ_t = beta1 (1 - .96^{t momentum_decay} / 2).

    The defaults are the one setting that AlgoPerf's self-tuning baseline has for all its workloads
    (mlcommons/algorithmic-efficiency, `prize_qualification_baselines/self_tuning`), so `nadamw+cosine+untuned` is that
    baseline, but for two things: its μ is constant, and its warm-up takes 2 % of the steps, here 5 %.

    Args:
        lr: Learning rate, > 0.
        beta1: Decay of m, in [0, 1).
        beta2: Decay of v, in [0, 1).
        eps: Added to √v̂, >= 0.
        weight_decay: Decay of the parameters, in units of the learning rate, >= 0.
        momentum_decay: How fast μ rises from beta1 / 2 to beta1, >= 0.

    Reference: Dozat 2016, "Incorporating Nesterov momentum into Adam"; Dahl et al. 2023, "Benchmarking neural network
    training algorithms" (arXiv 2306.07179); Kasimbeg et al. 2025 (arXiv 2505.24005) for its place among others.
    """

    grid: ClassVar[dict[str, tuple[float, ...]]] = {"lr": decades(-3.5, 0.5)}

    def __init__(
        self,
        *,
        lr: float = 0.0017486387539278373,
        beta1: float = 1 - 0.06733926164,
        beta2: float = 0.9955159689799007,
        eps: float = 1e-8,
        weight_decay: float = 0.08121616522670176,
        momentum_decay: float = 0.004,
    ):
        super().__init__(
            lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay, momentum_decay=momentum_decay
        )

    def init(self, params: Params) -> NAdamWState:
        zero, none = torch.zeros_like(params.flat), torch.zeros_like(params.flat[:, 0])
        return NAdamWState(none, none + 1, zero, zero)

    def update(
        self, params: Params, grads: Params, loss: Tensor | None, state: NAdamWState
    ) -> tuple[Params, NAdamWState]:
        h, step = self.hyperparameters, state.step[:, None] + 1
        mu, mu_next = (h["beta1"] * (1 - 0.5 * 0.96 ** (k * h["momentum_decay"])) for k in (step, step + 1))
        product = state.product[:, None] * mu
        first = torch.lerp(grads.flat, state.first, h["beta1"])
        second = torch.lerp(grads.flat.square(), state.second, h["beta2"])
        spread = root(second) / (1 - h["beta2"] ** step).sqrt() + h["eps"]
        ahead = (1 - mu) / (1 - product) * grads.flat + mu_next / (1 - product * mu_next) * first
        flat = params.flat * (1 - h["lr"] * h["weight_decay"]) - h["lr"] * ahead / spread
        return params.like(flat), NAdamWState(step[:, 0], product[:, 0], first, second)
