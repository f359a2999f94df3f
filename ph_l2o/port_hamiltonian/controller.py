"""What the port-Hamiltonian optimizer's controller sees of each tensor, and what it sets.

All features are free of the units of loss and gradient: both can be multiplied by any number, and nothing changes.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ph_l2o.params import Layout
from ph_l2o.port_hamiltonian.arithmetic import Number, PerTensor, arithmetic
from ph_l2o.port_hamiltonian.state import MOMENTUM, SECOND, THETA, PortHamiltonianState, Seen

NUM_FEATURES = 27
NUM_PORTS = 5
_LOG_GAIN_RANGE = (-30.0, 8.0)
_TIME_SCALES = (20.0, 100.0, 1000.0)
_MOST_RHO = 0.999
_TINY = 1e-20  # beside squares of gradients in their unit
_LEAST_RATIO = 1e-10  # of a tensor's squared gradient to that of all coordinates; less counts as noise
# Logs of squares, of an average of the gradient and of the gradient itself, over their average v, and of v over the
# past: less is hardly met in training, and what the network makes of it has no meaning. It sees these in its place.
_LEAST_AVERAGE, _LEAST_GRADIENT, _LEAST_GROWTH = -6.0, -2.0, -12.0
_LEAST_LOSS = 1e-36
_LEAST_SHARE = 1e-4
_LEAST_THETA = 0.05  # of the size of a tensor's entries: biases start at 0
_MOST_GROWTH = 1.5  # of that size since the start that lr follows; else longer steps and growth drive each other
_PROGRESS, _MOST_PROGRESS = 0.5, math.log(30.0)  # power of the loss's fall over about 100 steps in lr, and most of it
_FREE = 100.0  # in logs: what starts at 0, as heads, branches and linear models often do, has no size to keep to
_TYPICAL_LENGTH = 2.0


class Controller(nn.Sequential):
    """From features `(B, T, 27)` to ports `(B, T, 5)`: two hidden layers; lr scales with two natural lengths besides.

    Its parameters may have the problems' axis B in front: then each problem has a controller of its own.

    Args:
        hidden_size: Width of the hidden layers, >= 1.
        init_lr: Learning rate of tensors whose entries are of size 1, before meta-training, > 0.
        clock: The number of a step, >= 1, that it sees in place of all numbers of steps; None: it sees these.

    Attributes:
        powers: lr is proportional to these powers of U / (N √v̄), where there is a loss, and of the size of θ's entries.
    """

    def __init__(self, hidden_size: int, init_lr: float, clock: int | None = None):
        last = nn.Linear(hidden_size, NUM_PORTS)
        super().__init__(
            nn.Linear(NUM_FEATURES, hidden_size), nn.Tanh(), nn.Linear(hidden_size, hidden_size), nn.Tanh(), last
        )
        self.powers, self.clock = nn.Parameter(torch.tensor([0.25, 0.5])), clock
        # A small last layer: meta-training starts at a sane static optimizer.
        with torch.no_grad():
            last.weight.mul_(0.05)
            last.bias.copy_(torch.tensor([math.log(init_lr), 0.0, 1.5, 0.0, 2.0]))

    def forward(self, input: Tensor) -> Tensor:
        """The network's part."""
        layers = list(self)[:5]
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        if all(layer.weight.dim() == 2 and layer.bias.dim() == 1 for layer in linear):
            rows = input.flatten(0, -2) if input.dim() > 2 else input
            for layer in layers:
                rows = layer(rows)
            return rows.view(*input.shape[:-1], -1)
        for k, layer in enumerate(linear):
            input = (torch.tanh(input) if k else input) @ layer.weight.mT + layer.bias.unsqueeze(-2)
        return input

    def power(self, k: int) -> Tensor:
        """One of `powers`, for numbers `(B, T)`."""
        return self.powers[..., k, None]


class FrozenController:
    """A controller of constant weights in float64, for arrays `(…, 27)`.

    Args:
        network: Where the weights come from.
    """

    def __init__(self, network: Controller):
        values = {name: x.detach().double().cpu().numpy() for name, x in network.state_dict().items()}
        self.layers = [(values[f"{k}.weight"].T, values[f"{k}.bias"]) for k in (0, 2, 4)]
        self.powers, self.clock = values["powers"].tolist(), network.clock

    def __call__(self, x: Any) -> Any:
        """The network's part."""
        *hidden, (weight, bias) = self.layers
        for of_layer, of_bias in hidden:
            x = np.tanh(x @ of_layer + of_bias)
        return x @ weight + bias

    def power(self, k: int) -> float:
        """One of the powers."""
        return self.powers[k]


class Ports(NamedTuple):
    """What the controller sets for each tensor.

    Attributes:
        log_gain: log of the gain.
        mix: Share of the gradient's average in the force, in (0, 1).
        keep: 1 / (1 + D), in (0, 1).
        rho: How much the step scale follows each coordinate's own v, in (0, .999).
        lean: How much the gain follows the gradient's size, in (0, 1).
    """

    log_gain: PerTensor
    mix: PerTensor
    keep: PerTensor
    rho: PerTensor
    lean: PerTensor

    def scale(self, mean_squares: PerTensor, of_all: PerTensor) -> tuple[PerTensor, PerTensor]:
        """The gain, and ε² v̄ₐ + (1 - ρ) v̄, of s² = gain / √(ε² v̄ₐ + ρ v + (1 - ρ) v̄), for v̄ and v̄ₐ."""
        floor = (1 - self.rho) * (mean_squares + _TINY) + _LEAST_RATIO * of_all
        return arithmetic(self.rho).exp(arithmetic(self.rho).clip(self.log_gain, *_LOG_GAIN_RANGE)), floor

    def by_name(self, gain: PerTensor) -> dict[str, PerTensor]:
        """For diagnostics, with the gain that was taken."""
        return {"lr": gain, "damping": 1 / self.keep - 1, "mix": self.mix, "rho": self.rho, "lean": self.lean}


def ports(
    network: Any,
    sums: Any,
    starts: PerTensor,
    sizes: Any,
    second_mean: Number,
    reference: Number,
    seen: Seen,
    state: PortHamiltonianState,
    layout: Layout,
) -> Ports:
    """Run the controller, a `Controller` or, on arrays, a `FrozenController`.

    Args:
        network: The controller.
        sums: Sums over each tensor, `(…, 9, T)`.
        starts: Those of the squares of θ at the start, `(…, T)`.
        sizes: Coordinates of each tensor, `(T,)`.
        second_mean: Mean of v over all coordinates.
        reference: Its average over the past.
        seen: Loss and units.
        state: Before the step.
        layout: Shapes of the tensors.
    """
    xp = arithmetic(second_mean)
    log_mean = xp.log(second_mean + _TINY)
    log_growth = xp.at_least(log_mean - xp.log(reference + _TINY), _LEAST_GROWTH)
    log_size = xp.log(xp.total(sizes))
    length = _natural_length(log_mean, log_size, seen)
    means = (sums / sizes).swapaxes(-1, -2)
    features = xp.columns(
        _of_tensors(means, log_mean, log_size),
        _of_problem(length, log_growth, log_size, network.clock, seen, state),
        xp.table(layout, static_features, second_mean),
    )
    out = network(features)
    log_lr, (mix, keep, lean, rho) = out[..., 0], xp.unstack(xp.sigmoid(out[..., 1:]))
    log_theta, log_start = (
        xp.at_least(0.5 * xp.log(squares + _TINY), math.log(_LEAST_THETA))
        for squares in (means[..., THETA], starts / sizes)
    )
    most = log_start + math.log(_MOST_GROWTH) + _FREE * (starts <= 0)
    log_theta = xp.lesser(log_theta, most)
    log_lr = log_lr + _PROGRESS * xp.per_tensor(_progress(seen))
    log_lr = log_lr + network.power(0) * xp.per_tensor(length) + network.power(1) * log_theta
    return Ports(log_lr + 0.5 * lean * xp.per_tensor(log_growth), mix, keep, _MOST_RHO * rho, lean)


def _of_tensors(means: Any, log_mean: Number, log_size: Number) -> list[Any]:
    """`(…, T, 9)`: steadiness of the gradient, its share, that of the momentum, size of θ; cosines of the gradient."""
    xp = arithmetic(log_mean)
    logs = xp.log(means[..., : SECOND + 1] + _TINY)
    grad, averages, momentum, theta, second = xp.split(logs, (1, MOMENTUM - 1, 1, 1, 1))
    cosines = means[..., SECOND + 1 :] * xp.exp(-0.5 * (grad + logs[..., 1:THETA]))
    return [
        0.25 * xp.at_least(averages - second, _LEAST_AVERAGE),
        0.5 * xp.at_least(grad - second, _LEAST_GRADIENT),
        0.2 * xp.at_least(second - xp.per_tensor(xp.per_tensor(log_mean)), math.log(_LEAST_RATIO)),
        0.2 * xp.at_least(momentum + log_size, -20),
        0.3 * xp.at_least(theta, -20),
        cosines,
    ]


def _natural_length(log_mean: Number, log_size: Number, seen: Seen) -> Number:
    """Log of U / (N √v̄) where the loss is used, around 0 by a constant; 0 where it is not."""
    xp = arithmetic(log_mean)
    log_unit = xp.log(xp.at_least(seen.loss_fast, _LEAST_LOSS)) - xp.log(seen.gradient_unit)
    length = log_unit - log_size - 0.5 * log_mean + _TYPICAL_LENGTH
    return xp.where(seen.uses_loss > 0, xp.clip(length, -10, 10), 0.0)


def _progress(seen: Seen) -> Number:
    """Log of how far the loss has fallen, its slow average over its fast one, >= 0; 0 where the loss is not used."""
    xp = arithmetic(seen.loss_fast)
    slow, fast = (xp.log(xp.at_least(loss, _LEAST_LOSS)) for loss in (seen.loss_slow, seen.loss_fast))
    return xp.where(seen.uses_loss > 0, xp.clip(slow - fast, 0.0, _MOST_PROGRESS), 0.0)


def _of_problem(
    length: Number, log_growth: Number, log_size: Number, clock: int | None, seen: Seen, state: PortHamiltonianState
) -> list[Number]:
    """13 numbers: how gradient and loss develop, the natural length, what the last step was like, time."""
    xp = arithmetic(length)
    step = seen.step if clock is None else 0 * seen.step + clock
    losses = (seen.loss, seen.loss_fast, seen.loss_slow, seen.loss_start)
    loss, fast, slow, start = xp.each(lambda x: xp.log(xp.at_least(x, _LEAST_LOSS)), *losses)
    used = seen.uses_loss
    return [
        0.25 * log_growth,
        used * 0.3 * xp.clip(loss - fast, -20, 20),
        used * 0.3 * xp.clip(fast - slow, -20, 20),
        used * 0.3 * xp.clip(loss - start, -30, 30),
        used,
        0.3 * length,
        state.trust,
        0.3 * xp.log(state.share + _LEAST_SHARE),
        0.3 * xp.log(xp.at_least(step, 1)),
        0.2 * xp.like(log_size, loss),
        *xp.for_each(_TIME_SCALES, lambda scale, step: xp.tanh(step / scale - 1), step),
    ]


def tensor_sizes(layout: Layout) -> tuple[int, ...]:
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
