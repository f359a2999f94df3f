"""An MLP that every coordinate runs on features of its own gradients, as Metz et al.'s.

What is free of scale: multiplying the loss by a number changes nothing as long as gradients stay far above `eps`, and
other units of θ do not change what the network sees. What is not: the step is in θ's units, so `output_scale` has to
suit the size of the parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ph_l2o import segments
from ph_l2o.optimizers.classical import root
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.params import Layout, Params

_TIMES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000)  # inner steps
_FLOOR = 0.1  # of a root mean square relative to its tensor's, in 1 / it
_TILE = 16384  # coordinates of all problems whose activations stay in a CPU's cache


class CoordinatewiseMLPState(NamedTuple):
    """What the MLP remembers.

    Attributes:
        step: Steps done, `(B,)`.
        momenta: Averages of the gradient, one for each of `momentum_decays`, `(B, M, N)`.
        squares: Averages of the squared gradient, one for each of `rms_decays`, `(B, S, N)`.
    """

    step: Tensor
    momenta: Tensor
    squares: Tensor


class CoordinatewiseMLP(LearnedOptimizer):
    """θ ← θ - output_scale · d · exp(exponent_scale · a), where (d, a) = MLP(features), coordinate by coordinate.

    Let m be an average of the gradient g for each of `momentum_decays`, v one of g² for each of `rms_decays`, both
    without the bias of the start, s = √v + eps, and |·| the root mean square over the coordinate's tensor plus eps:

    - g / |g|, m / |m|, θ / |θ|, r = √v / |√v| and 1 / (r + .1);
    - g / s and m / s, of each m with each s;
    - tanh(k / τ - 1) of the step k = 0, 1, … at eleven time scales τ = 1, 3, 10, … 100,000.

    A coordinate whose gradients have all been 0 stays where it is.

    Departures from google/learned_optimization: g / s and m / s are not divided by their root mean square again, which
    would hide how far gradients have fallen; 1 / r is bounded, since a dead input's would dwarf all others; decays are
    not learned; there are no factored second moments.

    Args:
        hidden_size: Units of a hidden layer (ReLU), >= 1.
        num_layers: Hidden layers, >= 1.
        output_scale: Factor of the step, in θ's units, > 0.
        exponent_scale: Factor of a in the exponent, >= 0.
        momentum_decays: Decays of the averages of the gradient, one or more in [0, 1).
        rms_decays: Decays of the averages of its square, one or more in [0, 1).
        eps: Added to root mean squares, in the gradient's units and in θ's, > 0.

    Raises:
        ValueError: If an argument is out of range.

    Reference: Metz et al. 2019, "Understanding and correcting pathologies in the training of learned optimizers" (arXiv
    1810.10180), and 2022, "Practical tradeoffs between memory, compute, and performance in learned optimizers" (arXiv
    2203.11860); in google/learned_optimization `mlp_lopt` and, with more features, `adafac_mlp_lopt`.
    """

    takes_padding: ClassVar[bool] = True

    def __init__(
        self,
        *,
        hidden_size: int = 32,
        num_layers: int = 2,
        output_scale: float = 0.1,
        exponent_scale: float = 0.1,
        momentum_decays: Sequence[float] = (0.5, 0.9, 0.99, 0.999),
        rms_decays: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
    ):
        super().__init__()
        for name, size in (("hidden_size", hidden_size), ("num_layers", num_layers)):
            if size < 1:
                raise ValueError(f"optimizer.{name}={size}: must be >= 1")
        for name, value in (("output_scale", output_scale), ("eps", eps)):
            if not value > 0:
                raise ValueError(f"optimizer.{name}={value}: must be > 0")
        if not exponent_scale >= 0:
            raise ValueError(f"optimizer.exponent_scale={exponent_scale}: must be >= 0")
        for name, decays in (("momentum_decays", momentum_decays), ("rms_decays", rms_decays)):
            if not decays or not all(0 <= decay < 1 for decay in decays):
                raise ValueError(f"optimizer.{name}={list(decays)}: must be one or more decays in [0, 1)")
        self.output_scale, self.exponent_scale, self.eps = output_scale, exponent_scale, eps
        self.momentum_decays, self.rms_decays = tuple(momentum_decays), tuple(rms_decays)
        momenta, squares = len(momentum_decays), len(rms_decays)
        features = 2 + momenta + 2 * squares + (1 + momenta) * squares
        sizes = (features + len(_TIMES), *[hidden_size] * num_layers, 2)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))

    def init(self, params: Params) -> CoordinatewiseMLPState:
        batch, coordinates = params.flat.shape
        zeros = [params.flat.new_zeros(batch, len(d), coordinates) for d in (self.momentum_decays, self.rms_decays)]
        return CoordinatewiseMLPState(params.flat.new_zeros(batch), *zeros)

    def update(
        self, params: Params, grads: Params, loss: Tensor | None, state: CoordinatewiseMLPState
    ) -> tuple[Params, CoordinatewiseMLPState]:
        grad, after = grads.flat, state.step + 1
        momenta = _averaged(grad, state.momenta, self.momentum_decays)
        squares = _averaged(grad * grad, state.squares, self.rms_decays)
        features = torch.stack(
            self._features(
                params,
                grad,
                _without_bias(momenta, self.momentum_decays, after),
                [root(v) for v in _without_bias(squares, self.rms_decays, after)],
            )
        )
        direction, exponent = self._run_layers(features, state.step)
        step = self.output_scale * direction * (self.exponent_scale * exponent).exp()
        seen = squares[self.rms_decays.index(max(self.rms_decays))] > 0
        flat = params.flat - torch.where(seen, step, 0.0)
        return params.like(flat), CoordinatewiseMLPState(after, torch.stack(momenta, 1), torch.stack(squares, 1))

    def _features(self, params: Params, grad: Tensor, momenta: list[Tensor], spreads: list[Tensor]) -> list[Tensor]:
        """Those that differ from coordinate to coordinate, each `(B, N)`."""
        layout, moving = params.layout, [grad, *momenta]
        relative = [_relative(x, layout, self.eps) for x in (*moving, params.flat)]
        sizes = [_relative(spread, layout, self.eps) for spread in spreads]
        ratios = [x / (spread + self.eps) for spread in spreads for x in moving]
        return [*relative, *sizes, *(1 / (size + _FLOOR) for size in sizes), *ratios]

    def _run_layers(self, features: Tensor, step: Tensor) -> tuple[Tensor, ...]:
        """The two outputs `(B, N)`, of features `(F, B, N)` and of the number of the step `(B,)`."""
        first, *others = (layer for layer in self.layers if isinstance(layer, nn.Linear))
        weight, weight_of_time = first.weight.split((len(features), len(_TIMES)), 1)
        times = torch.stack([(step / time - 1).tanh() for time in _TIMES])
        # What all coordinates of a problem share goes into the bias, `(hidden_size, B, 1)`.
        bias = torch.addmm(first.bias[:, None], weight_of_time, times)[..., None]

        def outputs(x: Tensor) -> Tensor:
            shape = x.shape[1:]
            x = ((weight @ x.flatten(1)).unflatten(1, shape) + bias).flatten(1)
            for layer in others:
                x = torch.addmm(layer.bias[:, None], layer.weight, x.relu())
            return x.unflatten(1, shape)

        # A compiled graph is larger for every tile.
        tiles = (features,) if segments.is_tracing() else features.split(max(1, _TILE // features.shape[1]), -1)
        parts = [outputs(tile) for tile in tiles]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, -1)).unbind()


def _averaged(new: Tensor, averages: Tensor, decays: Sequence[float]) -> list[Tensor]:
    return [torch.lerp(new, old, decay) for old, decay in zip(averages.unbind(1), decays, strict=True)]


def _without_bias(averages: list[Tensor], decays: Sequence[float], step: Tensor) -> list[Tensor]:
    return [x / (1 - decay ** step[:, None]) for x, decay in zip(averages, decays, strict=True)]


def _tensor_sizes(layout: Layout) -> Sequence[int]:
    return [max(1, size) for size in layout.sizes]


def _relative(x: Tensor, layout: Layout, eps: float) -> Tensor:
    """Divided by the root mean square over each tensor."""
    return x / (layout.expand(root(layout.sum(x * x) / layout.table(_tensor_sizes, x))) + eps)
