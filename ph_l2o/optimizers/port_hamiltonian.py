"""The port-Hamiltonian learned optimizer.

Coordinates θ and momenta π move by a discrete port-Hamiltonian scheme whose energy cannot grow, whatever its
learned ports do; a small network, the controller, sets the ports of each tensor from scale-free statistics.

Symbols (code ↔ mathematics):

- `flat`, `momentum` ↔ θ, π; `grad` ↔ g = ∇f(θ); `scale` ↔ s > 0, step scale of a coordinate
- `damping` ↔ D ≥ 0, so that R = diag(D) is positive semidefinite; `r` ↔ r, stands for √max(f, c)
- `force` ↔ s·ĝ, with ĝ = (1 - mix) g + mix m; the port of r is c_i = force_i / (2√max(f, c))

One step, with r shared by all coordinates of a problem:

    r⁺ = [r + Σ c π / (1 + D)] / [1 + Σ 2c² / (1 + D)]
    π⁺ = (π - 2 c r⁺) / (1 + D)
    θ⁺ = θ + s π⁺

It satisfies Δ(r² + ½‖π‖²) = -Σ D (π⁺)² - (Δr)² - ½‖Δπ‖² ≤ 0 for any c, s > 0 and D ≥ 0: J is skew-symmetric
(c enters r and π with opposite signs), R ⪰ 0, and the implicit step only dissipates more.

Before each step r² follows max(f, c). Lowering r² releases energy; raising it is paid from an energy tank (Duindam and
Stramigioli 2004; Franken et al. 2011), which a share η_k = 1 - 1/k of all released energy refills. When the tank is
empty, r is not raised. So E = r² + ½‖π‖² + tank never increases.

The scalar auxiliary variable is due to Shen, Xu and Yang 2018 ("The scalar auxiliary variable (SAV) approach for
gradient flows") and, for optimisation, to Liu and Tian 2020 ("AEGD: adaptive gradient descent with energy").
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ph_l2o.optimizers.base import LearnedOptimizer
from ph_l2o.params import Layout, Params

_DECAYS = (0.5, 0.9, 0.99)  # of the gradient's averages
_SECOND_DECAY = 0.95  # of the squared gradient's average
_LOSS_DECAY = 0.9
_TIME_SCALES = (20.0, 100.0, 1000.0)
_TINY_SQUARE = 1e-16
_TINY_ENERGY = 1e-30
_LOG_SCALE_RANGE = (-15.0, 6.0)  # of log s
# Rows of the Gram matrix: gradient, its averages, momentum, parameters. Then the mean squared gradient follows.
_ROWS = 3 + len(_DECAYS)
_NUM_COSINES = _ROWS - 2  # of the gradient with its averages and the momentum
_NUM_OUTPUTS = 4  # log scale, mix, damping, exponent
_MIXED = 1  # the average that the force can be mixed with: decay .9


class PortHamiltonianState(NamedTuple):
    """What the optimizer remembers.

    Attributes:
        step: Steps done, `(B,)`.
        averages: Bias-corrected averages of the gradient, `(B, 3, N)`.
        second: Bias-corrected average of the squared gradient, `(B, N)`.
        momentum: π, `(B, N)`.
        loss_start: First loss, `(B,)`.
        loss_average: Bias-corrected average of the loss, `(B,)`.
        r_squared: r², `(B,)`.
        tank: Energy in the tank, `(B,)`.
        kinetic: ½‖π‖², `(B,)`.
    """

    step: Tensor
    averages: Tensor
    second: Tensor
    momentum: Tensor
    loss_start: Tensor
    loss_average: Tensor
    r_squared: Tensor
    tank: Tensor
    kinetic: Tensor

    def energy(self) -> Tensor:
        """E = r² + ½‖π‖² + tank of each problem, shape `(B,)`; it never increases."""
        return self.r_squared + self.kinetic + self.tank


class PortHamiltonian(LearnedOptimizer):
    """Port-Hamiltonian dynamics with a learned per-tensor controller; see the module's text.

    The step scale is s² = lr / v^q with v the average of the squared gradient and q ∈ [0, ½], which spans gradient
    descent (q = 0) to Adam (q = ½). The controller gives lr, D, q and the mix for each tensor in each step.

    Args:
        hidden_size: Width of the controller's two hidden layers, >= 1.
        init_lr: Learning rate before meta-training, > 0.
        tank: Energy in the tank at the start, as a multiple >= 0 of max(f(θ₀), c).
        loss_offset: c > 0, in units of the loss; a smaller loss counts as c.

    Raises:
        ValueError: If an argument is out of range.
    """

    needs_loss: ClassVar[bool] = True

    def __init__(self, *, hidden_size: int = 32, init_lr: float = 0.02, tank: float = 1.0, loss_offset: float = 1e-6):
        super().__init__()
        if hidden_size < 1:
            raise ValueError(f"optimizer.hidden_size={hidden_size}: must be >= 1 (width of the controller)")
        if init_lr <= 0:
            raise ValueError(f"optimizer.init_lr={init_lr}: must be > 0")
        if tank < 0:
            raise ValueError(f"optimizer.tank={tank}: must be >= 0 (multiple of the first loss)")
        if loss_offset <= 0:
            raise ValueError(f"optimizer.loss_offset={loss_offset}: must be > 0")
        self.tank, self.loss_offset = tank, loss_offset
        num_features = (_ROWS + 1) + _NUM_COSINES + 3 + (1 + len(_TIME_SCALES)) + 5
        self.controller = nn.Sequential(
            nn.Linear(num_features, hidden_size),
            nn.Tanh(),
            nn.Linear(hidden_size, hidden_size),
            nn.Tanh(),
            nn.Linear(hidden_size, _NUM_OUTPUTS),
        )
        # A small last layer: meta-training starts at a sane static optimizer.
        last = self.controller[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.weight.mul_(0.05)
            last.bias.copy_(torch.tensor([0.5 * math.log(init_lr), 0.0, 1.5, 1.0]))

    def init(self, params: Params) -> PortHamiltonianState:
        """Zeros; see `LearnedOptimizer.init`."""
        flat = params.flat
        zero = torch.zeros_like(flat)
        one = torch.zeros_like(flat[:, 0])
        averages = torch.zeros_like(flat)[:, None].repeat(1, len(_DECAYS), 1)
        return PortHamiltonianState(one, averages, zero, zero, one, one, one, one, one)

    def update(
        self, params: Params, grads: Params, loss: Tensor | None, state: PortHamiltonianState
    ) -> tuple[Params, PortHamiltonianState]:
        """One step of the scheme; see `LearnedOptimizer.update`."""
        if loss is None:
            raise ValueError("port_hamiltonian needs the loss of every step")
        flat, grad, layout = params.flat, grads.flat, params.layout
        step = state.step + 1
        first = state.step == 0
        weights = _average_weights(step)
        averages = torch.lerp(state.averages, grad[:, None], weights[:, : len(_DECAYS), None])
        second = torch.lerp(state.second, grad * grad, weights[:, len(_DECAYS), None])
        loss_average = torch.lerp(state.loss_average, loss, weights[:, -1])
        loss_start = torch.where(first, loss, state.loss_start)

        features = torch.cat(
            [
                _statistics(flat, grad, averages, second, state.momentum, layout),
                _repeat(_progress(loss, loss_average, loss_start), layout.num_tensors),
                _repeat(_time_features(step), layout.num_tensors),
                _static_features(layout, grad.device, grad.dtype).expand(len(grad), -1, -1).flatten(0, 1),
            ],
            1,
        )
        log_scale, mix, dissipation, exponent = self._ports(features, layout)

        scale = torch.addcmul(log_scale, exponent, (second + _TINY_SQUARE).log(), value=-1)
        scale = scale.clamp(*_LOG_SCALE_RANGE).exp()
        force = scale * torch.lerp(grad, averages[:, _MIXED], mix)
        damped = force * dissipation

        # r² follows the scaled loss; what raises it is paid from the tank.
        refill = 1 - 1 / step
        target = loss.clamp_min(self.loss_offset)
        r_squared = torch.where(first, target, state.r_squared)
        tank = torch.where(first, self.tank * target, state.tank)
        followed = torch.minimum(target, r_squared + tank)
        raised = followed - r_squared
        tank = tank - torch.maximum(raised, refill * raised)
        r_squared = followed.clamp_min(_TINY_ENERGY)

        # ratio = r⁺ / √target; c π / (1 + D) = damped π / (2 √target)
        half = 0.5 / target
        gain = torch.addcmul((r_squared / target).sqrt(), half, _dot(damped, state.momentum))
        ratio = gain / torch.addcmul(torch.ones_like(half), half, _dot(damped, force))
        momentum = torch.addcmul(state.momentum * dissipation, damped, ratio[:, None], value=-1)
        new = torch.addcmul(flat, scale, momentum)

        kinetic = 0.5 * _dot(momentum, momentum)
        r_after = ratio * ratio * target
        tank = torch.addcmul(tank, refill, r_squared - r_after + (state.kinetic - kinetic))
        return params.like(new), PortHamiltonianState(
            step, averages, second, momentum, loss_start, loss_average, r_after, tank, kinetic
        )

    def _ports(self, features: Tensor, layout: Layout) -> tuple[Tensor, ...]:
        """What the controller sets, for each coordinate: log s at v = 1, mix, 1 / (1 + D), q / 2."""
        free, bounded = self.controller(features).split(2, 1)
        bounded = bounded.sigmoid() * _bounds(features.device, features.dtype)
        ports = torch.cat([free, bounded], 1).view(-1, layout.num_tensors, _NUM_OUTPUTS)
        return layout.expand(ports.mT).unbind(1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a[:, None], b[:, :, None]).view(-1)


def _repeat(per_problem: Tensor, num_tensors: int) -> Tensor:
    """One row for each tensor of each problem: `(B, F)` → `(B T, F)`."""
    if num_tensors == 1:
        return per_problem
    return per_problem[:, None].expand(-1, num_tensors, -1).flatten(0, 1)


@lru_cache(maxsize=64)
def _constant(values: tuple, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, device=device, dtype=dtype)


def _bounds(device: torch.device, dtype: torch.dtype) -> Tensor:
    """1 / (1 + D) ∈ (0, 1); q / 2 ∈ (0, ¼)."""
    return _constant((1.0, 0.25), device, dtype)


def _average_weights(step: Tensor) -> Tensor:
    """Weights w of x̂ ← x̂ + w (x - x̂), the bias-corrected exponential averages: w = (1 - β) / (1 - βᵗ)."""
    decays = _constant((*_DECAYS, _SECOND_DECAY, _LOSS_DECAY), step.device, step.dtype)
    return (1 - decays) / (1 - decays ** step[:, None])


def _statistics(
    flat: Tensor, grad: Tensor, averages: Tensor, second: Tensor, momentum: Tensor, layout: Layout
) -> Tensor:
    """Scale-free statistics of each tensor, `(B T, 11)`, from one Gram matrix of all that is known of it."""
    rows = torch.cat([grad[:, None], averages, momentum[:, None], flat[:, None]], 1)
    if layout.num_tensors == 1:
        gram = rows @ rows.mT
        sums = second.sum(1, keepdim=True)
    else:
        gram = torch.stack([part @ part.mT for part in rows.split(layout.sizes, 2)], 1).flatten(0, 1)
        sums = layout.sum(second).view(-1, 1)
    squares = torch.cat([gram.diagonal(dim1=1, dim2=2), sums], 1)
    sizes = _sizes(layout, grad.device, grad.dtype).expand(len(grad), -1, -1).flatten(0, 1)
    logs = (squares / sizes + _TINY_SQUARE).log() @ _log_mixer(grad.device, grad.dtype)
    ratios, norms = logs.split((_ROWS + 1, _NUM_COSINES), 1)
    cosines = gram[:, 0, 1 : 1 + _NUM_COSINES] / sizes * norms.exp()
    return torch.cat([ratios, cosines], 1)


@lru_cache(maxsize=64)
def _log_mixer(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Constant matrix from the logarithms of mean squares to features, and to what normalises the cosines."""
    mixer = torch.zeros(_ROWS + 1, _ROWS + 1 + _NUM_COSINES, dtype=dtype)
    for k in range(1, 1 + len(_DECAYS)):
        mixer[k, k], mixer[-1, k] = 0.25, -0.25  # log(m² / v): how steady the gradient is
    mixer[0, 0], mixer[_ROWS - 2, _ROWS - 2], mixer[_ROWS - 1, _ROWS - 1] = 0.1, 0.2, 0.1
    mixer[0, _ROWS], mixer[-1, _ROWS] = 0.5, -0.5  # log(g² / v)
    for k in range(_NUM_COSINES):
        mixer[0, _ROWS + 1 + k] = mixer[1 + k, _ROWS + 1 + k] = -0.5
    return mixer.to(device)


def _progress(loss: Tensor, average: Tensor, start: Tensor) -> Tensor:
    """How the loss stands, against its own average and against the start, `(B, 3)`."""
    logs = (torch.stack([loss, average, start], 1).clamp_min(0) + 1e-10).log()
    mixer = _constant(((0.3, 0.3, 0.3), (0.0, -0.3, 0.0), (0.0, 0.0, -0.3)), loss.device, loss.dtype)
    return logs @ mixer


def _time_features(step: Tensor) -> Tensor:
    scales = _constant(_TIME_SCALES, step.device, step.dtype)
    step = step[:, None]
    return torch.cat([0.3 * step.log(), torch.tanh(step / scales - 1)], 1)


@lru_cache(maxsize=256)
def _sizes(layout: Layout, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor(layout.sizes, device=device, dtype=dtype)[None, :, None]


@lru_cache(maxsize=256)
def _static_features(layout: Layout, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Size, shape and depth of each tensor, `(1, T, 5)`."""
    rows = [
        [
            0.1 * math.log(size),
            float(len(shape) > 1),
            0.1 * math.log(shape[-1] if shape else 1),
            k / layout.num_tensors,
            float(k >= layout.num_tensors - 2),
        ]
        for k, (shape, size) in enumerate(zip(layout.shapes, layout.sizes, strict=True))
    ]
    return torch.tensor([rows], device=device, dtype=dtype)
