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

from ph_l2o import segments
from ph_l2o.optimizers.base import LearnedOptimizer
from ph_l2o.params import Layout, Params

_DECAYS = (0.5, 0.9, 0.99)  # of the gradient's averages
_SECOND_DECAY = 0.95  # of the squared gradient's average
_LOSS_DECAY = 0.9
_TIME_SCALES = (20.0, 100.0, 1000.0)
_TINY_SQUARE = 1e-16
_TINY_LOSS = 1e-10
_TINY_ENERGY = 1e-30
_LOG_SCALE_RANGE = (-15.0, 6.0)  # of log s
# What the statistics are of: gradient, its averages, momentum, parameters. Then the mean squared gradient follows.
_ROWS = 3 + len(_DECAYS)
_NUM_COSINES = _ROWS - 2  # of the gradient with its averages and the momentum
_NUM_LOSSES = 3  # now, average, start
_NUM_STATIC = 5  # size, shape and depth of a tensor
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
    takes_padding: ClassVar[bool] = True

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
        num_features = (_ROWS + 1) + _NUM_COSINES + _NUM_LOSSES + (1 + len(_TIME_SCALES)) + _NUM_STATIC
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

        statistics = _statistics(flat, grad, averages, second, state.momentum, layout)
        positive = torch.stack([loss, loss_average, loss_start, step], 1).clamp_min(0)
        positive = positive + _constant((*[_TINY_LOSS] * _NUM_LOSSES, 0.0), loss.device, loss.dtype)
        log_scale, mix, dissipation, exponent = self._ports(_inputs(statistics, positive, step, layout), layout)

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

    def _ports(self, inputs: Tensor, layout: Layout) -> tuple[Tensor, ...]:
        """What the controller sets, for each coordinate: log s at v = 1, mix, 1 / (1 + D), q / 2."""
        features = inputs @ _feature_matrix(inputs.device, inputs.dtype)
        free, bounded = self.controller(features).split(2, 1)
        bounded = bounded.sigmoid() * _bounds(inputs.device, inputs.dtype)
        ports = torch.cat([free, bounded], 1).view(-1, layout.num_tensors, _NUM_OUTPUTS)
        return layout.expand(ports.mT).unbind(1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a[:, None], b[:, :, None]).view(-1)


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
    """Means over each tensor, `(B, T, 11)`: of the squares, of v, and of the products of the gradient."""
    grad = grad[:, None]
    rows = torch.cat([grad, averages, momentum[:, None], flat[:, None]], 1)
    others = rows[:, 1 : 1 + _NUM_COSINES]
    if segments.is_tracing():
        sums = torch.cat([layout.dot(rows, rows), layout.sum(second[:, None]), layout.dot(grad, others)], 1)
    else:
        sums = layout.sum(torch.cat([rows * rows, second[:, None], grad * others], 1))
    return sums.mT / layout.table(_sizes, flat)[:, None]


def _inputs(statistics: Tensor, positive: Tensor, step: Tensor, layout: Layout) -> Tensor:
    """What the features are linear in, one row for each tensor of each problem, `(B T, 23)`.

    Logarithms of the mean squares, the losses and the step; cosines; how far the step is; the tensor's shape.
    """
    squares, products = statistics.split((_ROWS + 1, _NUM_COSINES), 2)
    times = torch.tanh(step[:, None] / _constant(_TIME_SCALES, step.device, step.dtype) - 1)
    times, positive = (x[:, None].expand(-1, layout.num_tensors, -1) for x in (times, positive))
    logs = torch.cat([squares + _TINY_SQUARE, positive], 2).log()
    cosines = products * (-0.5 * (logs[..., :1] + logs[..., 1 : 1 + _NUM_COSINES])).exp()
    static = layout.table(_static_features, step).expand(len(step), -1, -1)
    return torch.cat([logs, cosines, times, static], 2).flatten(0, 1)


@lru_cache(maxsize=64)
def _feature_matrix(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Constant matrix from `_inputs` to the controller's features: ratios where scale has no meaning, of order one."""
    grad, averages, momentum, theta, second, loss, average, start, step = 0, range(1, 4), 4, 5, 6, 7, 8, 9, 10
    logs: list[dict[int, float]] = [
        {grad: 0.1},
        *({k: 0.25, second: -0.25} for k in averages),  # how steady the gradient is
        {momentum: 0.2},
        {theta: 0.1},
        {grad: 0.5, second: -0.5},
    ]
    progress: list[dict[int, float]] = [{loss: 0.3}, {loss: 0.3, average: -0.3}, {loss: 0.3, start: -0.3}]
    others = [{step + 1 + k: 1.0} for k in range(_NUM_COSINES + len(_TIME_SCALES) + _NUM_STATIC)]
    cosines, rest = others[:_NUM_COSINES], others[_NUM_COSINES:]
    rows = [*logs, *cosines, *progress, {step: 0.3}, *rest]
    matrix = torch.zeros(len(rows), len(rows), dtype=dtype)
    for i, row in enumerate(rows):
        for k, factor in row.items():
            matrix[k, i] = factor
    return matrix.to(device)


def _sizes(layout: Layout) -> tuple[int, ...]:
    return layout.sizes


def _static_features(layout: Layout) -> list[list[float]]:
    """Size, shape and depth of each tensor, `(T, 5)`."""
    return [
        [
            0.1 * math.log(size),
            float(len(shape) > 1),
            0.1 * math.log(shape[-1] if shape else 1),
            k / layout.num_tensors,
            float(k >= layout.num_tensors - 2),
        ]
        for k, (shape, size) in enumerate(zip(layout.shapes, layout.sizes, strict=True))
    ]
