"""Classical optimizers as learned optimizers: their hyperparameters are the meta-parameters.

The rules are those of `torch.optim`. What must lie in a range is stored without one: a learning rate η > 0 as
log η, a decay β ∈ [0, 1) as logit β = log(β / (1 - β)). So any step of meta-training leads to a valid
optimizer.
"""

from __future__ import annotations

import copy
import math
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.params import Params

# Stands for a decay of 0, whose logit is not finite: sigmoid(-40) = 4e-18 is below rounding.
_LOWEST_LOGIT = -40.0
_DECAYS = ("momentum", "alpha", "beta1", "beta2")


def decades(low: float, high: float) -> tuple[float, ...]:
    """From 10^low to 10^high, two values a decade: learning rates to try."""
    return tuple(10 ** (low + 0.5 * k) for k in range(round(2 * (high - low)) + 1))


class ClassicalOptimizer(LearnedOptimizer):
    """Base of the classical optimizers.

    Meta-parameters are `log_lr` and the logits of the decays (`logit_momentum`, …); `eps` and `weight_decay`
    are constants, held in buffers. Each has shape `()`, or `(B, 1)` with one value for each problem, and
    torch's default dtype: in float32 a value is rounded to about 1e-7 of itself, and stays so after `.double()`;
    `.double().with_hyperparameters(…)` sets it anew.

    Attributes:
        grid: Values to try for each hyperparameter when the optimizer is tuned, by name.

    Raises:
        ValueError: If a hyperparameter is out of range.
    """

    takes_padding: ClassVar[bool] = True

    grid: ClassVar[dict[str, tuple[float, ...]]]

    def __init__(self, **hyperparameters: float):
        super().__init__()
        self._names = tuple(hyperparameters)
        for name, value in hyperparameters.items():
            stored = _stored(name, value).to(torch.get_default_dtype())
            if _is_learned(name):
                self.register_parameter(_stored_name(name), nn.Parameter(stored))
            else:
                self.register_buffer(_stored_name(name), stored)

    @property
    def hyperparameters(self) -> dict[str, Tensor]:
        """Current values by name, each of shape `()` or `(B, 1)`; gradients flow through them."""
        return {name: _natural(name, getattr(self, _stored_name(name))) for name in self._names}

    def with_hyperparameters(self, **values: float | Tensor) -> Self:
        """A copy in which the named hyperparameters have these values.

        Args:
            **values: Numbers, or tensors of shape `(B,)` with one value for each problem, so that a whole
                grid can run in one batch.

        Raises:
            ValueError: If a name is unknown, or a value out of range.

        Examples:
            >>> Adam().with_hyperparameters(lr=torch.tensor([0.5, 0.25])).hyperparameters["lr"].tolist()
            [[0.5], [0.25]]
        """
        new = copy.deepcopy(self)
        for name, value in values.items():
            if name not in self._names:
                raise ValueError(f"optimizer.{name}: unknown; {type(self).__name__} has {', '.join(self._names)}")
            stored = _stored(name, value)
            if stored.dim():
                stored = stored.reshape(-1, 1)
            getattr(new, _stored_name(name)).data = stored.to(getattr(self, _stored_name(name)))
        return new


def _is_learned(name: str) -> bool:
    return name == "lr" or name in _DECAYS


def _stored_name(name: str) -> str:
    return "log_lr" if name == "lr" else f"logit_{name}" if name in _DECAYS else name


def _stored(name: str, value: float | Tensor) -> Tensor:
    """What is stored for a hyperparameter's value, in float64."""
    x = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach()
    if name == "lr":
        valid, allowed = x > 0, "> 0"
    elif name in _DECAYS:
        valid, allowed = (x >= 0) & (x < 1), "in [0, 1)"
    else:
        valid, allowed = x >= 0, ">= 0"
    if not (valid & x.isfinite()).all():
        shown = value if x.dim() == 0 else x[~(valid & x.isfinite())][0].item()
        raise ValueError(f"optimizer.{name}={shown}: must be {allowed}{'' if math.isfinite(shown) else ', and finite'}")
    if name == "lr":
        return x.log()
    return x.logit().clamp_min(_LOWEST_LOGIT) if name in _DECAYS else x.clone()


def _natural(name: str, stored: Tensor) -> Tensor:
    return stored.exp() if name == "lr" else stored.sigmoid() if name in _DECAYS else stored


class SGDState(NamedTuple):
    """Gradient descent remembers nothing."""


class SGD(ClassicalOptimizer):
    """Gradient descent, θ ← θ - lr (g + weight_decay θ).

    Args:
        lr: Learning rate, > 0.
        weight_decay: Factor of ½‖θ‖² in the loss, >= 0.
    """

    grid: ClassVar[dict[str, tuple[float, ...]]] = {"lr": decades(-2.5, 1)}

    def __init__(self, *, lr: float = 0.1, weight_decay: float = 0.0):
        super().__init__(lr=lr, weight_decay=weight_decay)

    def init(self, params: Params) -> SGDState:
        return SGDState()

    def update(self, params: Params, grads: Params, loss: Tensor | None, state: SGDState) -> tuple[Params, SGDState]:
        h = self.hyperparameters
        return params.like(params.flat - h["lr"] * _decayed(grads, params, h["weight_decay"])), state


class MomentumState(NamedTuple):
    """What gradient descent with momentum remembers.

    Attributes:
        velocity: Decaying sum of gradients, `(B, N)`.
    """

    velocity: Tensor


class Momentum(ClassicalOptimizer):
    """Gradient descent with momentum, u ← momentum u + g + weight_decay θ, θ ← θ - lr u.

    Args:
        lr: Learning rate, > 0.
        momentum: Decay of u, in [0, 1).
        weight_decay: Factor of ½‖θ‖² in the loss, >= 0.

    Reference: Polyak 1964, "Some methods of speeding up the convergence of iteration methods".
    """

    grid: ClassVar[dict[str, tuple[float, ...]]] = {"lr": decades(-2.5, 1), "momentum": (0.9, 0.95)}

    def __init__(self, *, lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 0.0):
        super().__init__(lr=lr, momentum=momentum, weight_decay=weight_decay)

    def init(self, params: Params) -> MomentumState:
        return MomentumState(torch.zeros_like(params.flat))

    def update(
        self, params: Params, grads: Params, loss: Tensor | None, state: MomentumState
    ) -> tuple[Params, MomentumState]:
        h = self.hyperparameters
        grad = _decayed(grads, params, h["weight_decay"])
        velocity = torch.addcmul(grad, h["momentum"], state.velocity)
        direction = self._direction(grad, velocity, h["momentum"])
        return params.like(params.flat - h["lr"] * direction), MomentumState(velocity)

    def _direction(self, grad: Tensor, velocity: Tensor, momentum: Tensor) -> Tensor:
        return velocity


class Nesterov(Momentum):
    """Nesterov's momentum, u ← momentum u + g + weight_decay θ, θ ← θ - lr (g + weight_decay θ + momentum u).

    Args:
        lr: Learning rate, > 0.
        momentum: Decay of u, in [0, 1).
        weight_decay: Factor of ½‖θ‖² in the loss, >= 0.

    Reference: Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning".
    """

    def _direction(self, grad: Tensor, velocity: Tensor, momentum: Tensor) -> Tensor:
        return torch.addcmul(grad, momentum, velocity)


class RMSpropState(NamedTuple):
    """What RMSprop remembers.

    Attributes:
        second: Average of the squared gradient, `(B, N)`.
    """

    second: Tensor


class RMSprop(ClassicalOptimizer):
    """RMSprop, v ← alpha v + (1 - alpha) g², θ ← θ - lr g / (√v + eps).

    Args:
        lr: Learning rate, > 0.
        alpha: Decay of v, in [0, 1).
        eps: Added to √v, >= 0.
        weight_decay: Factor of ½‖θ‖² in the loss, >= 0.

    Reference: Tieleman and Hinton 2012, "Lecture 6.5: RMSprop".
    """

    grid: ClassVar[dict[str, tuple[float, ...]]] = {"lr": decades(-4, -0.5)}

    def __init__(self, *, lr: float = 0.01, alpha: float = 0.99, eps: float = 1e-8, weight_decay: float = 0.0):
        super().__init__(lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay)

    def init(self, params: Params) -> RMSpropState:
        return RMSpropState(torch.zeros_like(params.flat))

    def update(
        self, params: Params, grads: Params, loss: Tensor | None, state: RMSpropState
    ) -> tuple[Params, RMSpropState]:
        h = self.hyperparameters
        grad = _decayed(grads, params, h["weight_decay"])
        second = torch.lerp(grad * grad, state.second, h["alpha"])
        return params.like(params.flat - h["lr"] * grad / (root(second) + h["eps"])), RMSpropState(second)


class AdamState(NamedTuple):
    """What Adam remembers.

    Attributes:
        step: Steps done, `(B,)`.
        first: Average of the gradient, `(B, N)`.
        second: Average of the squared gradient, `(B, N)`.
    """

    step: Tensor
    first: Tensor
    second: Tensor


class Adam(ClassicalOptimizer):
    """Adam, m ← beta1 m + (1 - beta1) g, v ← beta2 v + (1 - beta2) g², θ ← θ - lr m̂ / (√v̂ + eps).

    m̂ = m / (1 - beta1ᵗ) and v̂ = v / (1 - beta2ᵗ) correct the bias of the start.

    Args:
        lr: Learning rate, > 0.
        beta1: Decay of m, in [0, 1).
        beta2: Decay of v, in [0, 1).
        eps: Added to √v̂, >= 0.
        weight_decay: Factor of ½‖θ‖² in the loss, >= 0.

    Reference: Kingma and Ba 2015, "Adam: a method for stochastic optimization" (arXiv 1412.6980).
    """

    grid: ClassVar[dict[str, tuple[float, ...]]] = {"lr": decades(-3.5, 0.5), "beta2": (0.9, 0.999)}

    def __init__(
        self,
        *,
        lr: float = 0.01,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)

    def init(self, params: Params) -> AdamState:
        zero = torch.zeros_like(params.flat)
        return AdamState(torch.zeros_like(params.flat[:, 0]), zero, zero)

    def update(self, params: Params, grads: Params, loss: Tensor | None, state: AdamState) -> tuple[Params, AdamState]:
        h = self.hyperparameters
        flat, grad = self._decay(params, grads, h)
        step = state.step + 1
        first = torch.lerp(grad, state.first, h["beta1"])
        second = torch.lerp(grad * grad, state.second, h["beta2"])
        return params.like(flat - adam_step(first, second, step[:, None], h)), AdamState(step, first, second)

    def _decay(self, params: Params, grads: Params, h: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Parameters and gradient after weight decay."""
        return params.flat, _decayed(grads, params, h["weight_decay"])


class AdamW(Adam):
    """Adam with decoupled weight decay: θ ← (1 - lr weight_decay) θ before Adam's step.

    Args:
        lr: Learning rate, > 0.
        beta1: Decay of m, in [0, 1).
        beta2: Decay of v, in [0, 1).
        eps: Added to √v̂, >= 0.
        weight_decay: Decay of the parameters, in units of the learning rate, >= 0.

    Reference: Loshchilov and Hutter 2019, "Decoupled weight decay regularization" (arXiv 1711.05101).
    """

    def __init__(
        self,
        *,
        lr: float = 0.01,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ):
        super().__init__(lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)

    def _decay(self, params: Params, grads: Params, h: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return params.flat * (1 - h["lr"] * h["weight_decay"]), grads.flat


def adam_step(first: Tensor, second: Tensor, step: Tensor, h: dict[str, Tensor]) -> Tensor:
    """Adam's step lr m̂ / (√v̂ + eps), to be subtracted.

    Args:
        first: Average of the gradient m, `(B, …)`.
        second: Average of the squared gradient v, as `first`.
        step: Number of gradients in the averages, >= 1, `(B, 1)`.
        h: `lr`, `beta1`, `beta2` and `eps`, each of shape `()` or `(B, 1)`.
    """
    rate = h["lr"] / (1 - h["beta1"] ** step)
    spread = (1 - h["beta2"] ** step).sqrt()
    return rate * first / (root(second) / spread + h["eps"])


def _decayed(grads: Params, params: Params, weight_decay: Tensor) -> Tensor:
    return torch.addcmul(grads.flat, weight_decay, params.flat)


def root(second: Tensor) -> Tensor:
    """√v; where v = 0, as at a dead input, its derivative would be infinite."""
    return second.clamp_min(torch.finfo(second.dtype).tiny).sqrt()
