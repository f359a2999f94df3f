"""What the port-Hamiltonian optimizer's controller sees of each tensor, and what it sets.

All features are free of the units of loss and gradient: both can be multiplied by any number, and nothing changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ph_l2o.params import Layout

if TYPE_CHECKING:
    from ph_l2o.port_hamiltonian.energy import PortHamiltonianState, Seen

# Sums over a tensor: squares of gradient, its two averages, momentum, parameters; v; products of the gradient.
GRADIENT, MOMENTUM, THETA, SECOND = 0, 3, 4, 5
NUM_FEATURES = 27
NUM_PORTS = 5
PACE, MOST_PACE = 50.0, 2000.0  # steps, see `Controller.pace`
_TIME_SCALES = (20.0, 100.0, 1000.0)
_MOST_RHO = 0.999
_TINY = 1e-20
_LEAST_LOSS = 1e-36
_LEAST_SHARE = 1e-4
_LEAST_THETA = 0.05  # of the size of a tensor's entries: biases start at 0
_TYPICAL_LENGTH = 2.0


class Controller(nn.Sequential):
    """From features `(…, 27)` to ports `(…, 5)`: two hidden layers, beside which lr scales with two natural lengths.

    Args:
        hidden_size: Width of the hidden layers, >= 1.
        init_lr: Learning rate of tensors whose entries are of size 1, before meta-training, > 0.
        pace: Two numbers p of a factor exp(p₀) (1 + k/50)^p₁ of lr in step k <= 2,000, the same afterwards. Not learned
            by gradients, whose windows are too short for it: they teach to take ever smaller steps.
            `benchmarks/pace.py` finds what is best over long horizons.

    Attributes:
        powers: lr is proportional to these powers of U / (N √v̄), where there is a loss, and of the size of θ's entries.
        pace: The argument, `(2,)`, or `(B, 2)` with numbers for each problem; no part of the weights.
    """

    pace: Tensor

    def __init__(self, hidden_size: int, init_lr: float, pace: Sequence[float] = (0.0, 0.0)):
        last = nn.Linear(hidden_size, NUM_PORTS)
        super().__init__(
            nn.Linear(NUM_FEATURES, hidden_size), nn.Tanh(), nn.Linear(hidden_size, hidden_size), nn.Tanh(), last
        )
        self.powers = nn.Parameter(torch.tensor([0.25, 0.5]))
        self.register_buffer("pace", torch.tensor(pace, dtype=torch.get_default_dtype()), persistent=False)
        # A small last layer: meta-training starts at a sane static optimizer.
        with torch.no_grad():
            last.weight.mul_(0.05)
            last.bias.copy_(torch.tensor([math.log(init_lr), 0.0, 1.5, 0.0, 2.0]))

    def forward(self, input: Tensor) -> Tensor:
        """The network's part."""
        for layer in list(self)[:5]:
            input = layer(input)
        return input


class Ports(NamedTuple):
    """What the controller sets for each tensor, `(B, T)`.

    Attributes:
        log_gain: log of the gain.
        mix: Share of the gradient's average in the force, in (0, 1).
        keep: 1 / (1 + D), in (0, 1).
        rho: How much the step scale follows each coordinate's own v, in (0, .999).
        lean: How much the gain follows the gradient's size, in (0, 1).
    """

    log_gain: Tensor
    mix: Tensor
    keep: Tensor
    rho: Tensor
    lean: Tensor


def ports(
    network: Controller,
    sums: Tensor,
    sizes: Tensor,
    second_mean: Tensor,
    reference: Tensor,
    seen: Seen,
    state: PortHamiltonianState,
    layout: Layout,
) -> Ports:
    """Run the controller.

    Args:
        network: The controller.
        sums: Sums over each tensor, `(B, 9, T)`.
        sizes: Coordinates of each tensor, `(T,)`.
        second_mean: Mean of v over all coordinates, `(B,)`.
        reference: Its average over the past, `(B,)`.
        seen: Loss and units.
        state: Before the step.
        layout: Shapes of the tensors.
    """
    log_mean = (second_mean + _TINY).log()
    log_growth = log_mean - (reference + _TINY).log()
    means = (sums / sizes).mT
    length = _natural_length(log_mean, sizes, seen)
    features = torch.cat(
        [
            _of_tensors(means, log_mean, sizes),
            _of_problem(length, log_growth, sizes, seen, state)[:, None].expand(-1, layout.num_tensors, -1),
            layout.table(static_features, sizes).expand(len(sums), -1, -1),
        ],
        2,
    )
    out = network(features.flatten(0, 1)).unflatten(0, (-1, layout.num_tensors))
    log_lr, (mix, keep, lean, rho) = out[..., 0], out[..., 1:].sigmoid().unbind(2)
    log_theta = (0.5 * (means[..., THETA] + _TINY).log()).clamp_min(math.log(_LEAST_THETA))
    pace = network.pace[..., 0] + network.pace[..., 1] * (seen.step.clamp_max(MOST_PACE) / PACE).log1p()
    log_lr = log_lr + network.powers[0] * length[:, None] + network.powers[1] * log_theta + pace[:, None]
    return Ports(log_lr + 0.5 * lean * log_growth[:, None], mix, keep, _MOST_RHO * rho, lean)


def _of_tensors(means: Tensor, log_mean: Tensor, sizes: Tensor) -> Tensor:
    """`(B, T, 9)`: steadiness of the gradient, its share, that of the momentum, size of θ; cosines of the gradient."""
    logs = (means[..., : SECOND + 1] + _TINY).log()
    grad, averages, momentum, theta, second = logs.split((1, MOMENTUM - 1, 1, 1, 1), 2)
    cosines = means[..., SECOND + 1 :] * (-0.5 * (grad + logs[..., 1:THETA])).exp()
    return torch.cat(
        [
            0.25 * (averages - second),
            0.5 * (grad - second),
            0.2 * (second - log_mean[:, None, None]),
            0.2 * (momentum + sizes.sum().log()).clamp_min(-20),
            0.3 * theta.clamp_min(-20),
            cosines,
        ],
        2,
    )


def _natural_length(log_mean: Tensor, sizes: Tensor, seen: Seen) -> Tensor:
    """Log of U / (N √v̄) where the loss is used, around 0 by a constant, `(B,)`; 0 where it is not."""
    log_unit = seen.loss_fast.clamp_min(_LEAST_LOSS).log() - seen.gradient_unit.log()
    length = log_unit - sizes.sum().log() - 0.5 * log_mean + _TYPICAL_LENGTH
    return torch.where(seen.uses_loss > 0, length.clamp(-10, 10), 0.0)


def _of_problem(length: Tensor, log_growth: Tensor, sizes: Tensor, seen: Seen, state: PortHamiltonianState) -> Tensor:
    """`(B, 13)`: how gradient and loss develop, the natural length, what the last step was like, time."""
    losses = torch.stack([seen.loss, seen.loss_fast, seen.loss_slow, seen.loss_start], 1)
    loss, fast, slow, start = losses.clamp_min(_LEAST_LOSS).log().unbind(1)
    used = (seen.uses_loss > 0).to(loss)
    log_size = sizes.sum().log().expand_as(loss)
    features = [
        0.25 * log_growth,
        used * 0.3 * (loss - fast).clamp(-20, 20),
        used * 0.3 * (fast - slow).clamp(-20, 20),
        used * 0.3 * (loss - start).clamp(-30, 30),
        used,
        0.3 * length,
        state.trust,
        0.3 * (state.share + _LEAST_SHARE).log(),
        0.3 * seen.step.clamp_min(1).log(),
        0.2 * log_size,
    ]
    times = torch.tanh(seen.step[:, None] / constant(_TIME_SCALES, loss.device, loss.dtype) - 1)
    return torch.cat([torch.stack(features, 1), times], 1)


@lru_cache(maxsize=64)
def constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """A constant row, made once."""
    return torch.tensor(values, device=device, dtype=dtype)


def sizes(layout: Layout) -> tuple[int, ...]:
    """Coordinates of each tensor, for `Layout.table`."""
    return layout.sizes


def static_features(layout: Layout) -> list[list[float]]:
    """Size, shape and depth of each tensor, `(T, 5)`, for `Layout.table`."""
    return [
        [
            0.2 * math.log(size),
            float(len(shape) > 1),
            0.2 * math.log(min(shape[0], size // shape[0]) if size and shape else 1),
            k / layout.num_tensors,
            float(k >= layout.num_tensors - 2),
        ]
        for k, (shape, size) in enumerate(zip(layout.shapes, layout.sizes, strict=True))
    ]
