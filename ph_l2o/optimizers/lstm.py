"""The coordinatewise LSTM optimizer.

Each coordinate runs the same small LSTM on its own gradients; the LSTM's output is added to the parameter.
The gradient is an input without a special role in differentiation: a meta-gradient of first order holds it
constant, as Andrychowicz et al. do, one of second order differentiates it.

Numbers below 1e-38 (denormal in float32) make a CPU several times slower. An LSTM meets them when its gates
close: call `torch.set_flush_denormal(True)` once in each process.
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ph_l2o import segments
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.optimizers.preprocessing import log_and_sign
from ph_l2o.params import Params

# Coordinates whose activations stay in a CPU's cache; measured, 2,000 to 8,000 are about equal.
_TILE = 4096
_MERGED = 512  # problems of fewer coordinates share a tile; for larger ones that would be a copy for nothing


class LSTMState(NamedTuple):
    """What the LSTM remembers.

    Attributes:
        hidden: Outputs of each layer for each coordinate, `(B, num_layers, hidden_size, N)`.
        cell: Cells of each layer, the same shape.
    """

    hidden: Tensor
    cell: Tensor


class LSTM(LearnedOptimizer):
    """θ ← θ + output_scale · Linear(LSTM(g)), coordinate by coordinate.

    Args:
        hidden_size: Hidden units of a layer, >= 1.
        num_layers: Layers, >= 1.
        output_scale: Factor of what is added to the parameter, > 0.
        preprocess: Whether the input is `log_and_sign` of the gradient in place of the gradient.

    Raises:
        ValueError: If an argument is out of range.

    Reference: Andrychowicz et al. 2016, "Learning to learn by gradient descent by gradient descent" (arXiv
    1606.04474).
    """

    takes_padding: ClassVar[bool] = True

    def __init__(
        self,
        *,
        hidden_size: int = 20,
        num_layers: int = 2,
        output_scale: float = 0.1,
        preprocess: bool = True,
    ):
        super().__init__()
        if hidden_size < 1:
            raise ValueError(f"optimizer.hidden_size={hidden_size}: must be >= 1 (hidden units of a layer)")
        if num_layers < 1:
            raise ValueError(f"optimizer.num_layers={num_layers}: must be >= 1")
        if not output_scale > 0:
            raise ValueError(f"optimizer.output_scale={output_scale}: must be > 0")
        self.hidden_size, self.num_layers = hidden_size, num_layers
        self.output_scale, self.preprocess = output_scale, preprocess
        inputs = [2 if preprocess else 1, *[hidden_size] * (num_layers - 1)]
        self.cells = nn.ModuleList(_Cell(size, hidden_size) for size in inputs)
        self.output = nn.Linear(hidden_size, 1)

    def init(self, params: Params) -> LSTMState:
        """Zeros; see `LearnedOptimizer.init`."""
        batch, coordinates = params.flat.shape
        zero = params.flat.new_zeros(batch, self.num_layers, self.hidden_size, coordinates)
        return LSTMState(zero, zero)

    def update(self, params: Params, grads: Params, loss: Tensor | None, state: LSTMState) -> tuple[Params, LSTMState]:
        """One step; see `LearnedOptimizer.update`."""
        del loss
        inputs = torch.stack(log_and_sign(grads.flat), 1) if self.preprocess else grads.flat[:, None]
        weights = [_with_doubled_candidate(layer) for layer in self.cells]
        rows = (inputs, state.hidden, state.cell)
        if params.flat.shape[1] < _MERGED:
            merged = self._coordinates(weights, *(x.movedim(0, -2).flatten(-2) for x in rows))
            step, *after = (x.unflatten(-1, params.flat.shape).movedim(-2, 0) for x in merged)
        else:
            each = [self._coordinates(weights, *problem) for problem in zip(*rows, strict=True)]
            step, *after = (torch.stack(parts) for parts in zip(*each, strict=True))
        return params.like(params.flat + self.output_scale * step), LSTMState(*after)

    def _coordinates(
        self, weights: list[tuple[Tensor, Tensor]], inputs: Tensor, hidden: Tensor, cell: Tensor
    ) -> tuple[Tensor, ...]:
        """The step `(n,)` and the next state of n coordinates, which are the last axis."""
        # A compiled graph is larger for every tile. Otherwise `split` and one `cat`: the backward pass of slices would
        # fill a whole tensor for each tile.
        size = inputs.shape[-1] if segments.is_tracing() else _TILE
        tiles = zip(*(x.split(size, -1) for x in (inputs, hidden, cell)), strict=True)
        return tuple(_joined(parts) for parts in zip(*(self._tile(weights, *t) for t in tiles), strict=True))

    def _tile(
        self, weights: list[tuple[Tensor, Tensor]], x: Tensor, hidden: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        new: list[tuple[Tensor, Tensor]] = []
        for (weight, bias), h, c in zip(weights, hidden, cell, strict=True):
            x, c = _cell(weight, bias, x, h, c)
            new.append((x, c))
        hiddens, cells = zip(*new, strict=True)
        step = torch.addmm(self.output.bias[:, None], self.output.weight, x)[0]
        return step, torch.stack(hiddens), torch.stack(cells)


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _cell(weight: Tensor, bias: Tensor, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """One layer: hidden and cell `(hidden_size, n)` after the step.

    All tanh are sigmoids, tanh z = 2 σ(2 z) - 1, which take half as long; the candidate's 2 z is in its weights.
    """
    gates = torch.addmm(bias[:, None], weight, torch.cat([x, hidden]))
    i, f, o, g = gates.sigmoid().split(len(cell))
    cell = torch.addcmul(f * cell, i, _to_tanh(g))
    return o * _to_tanh((2 * cell).sigmoid()), cell


def _to_tanh(sigmoid: Tensor) -> Tensor:
    return 2 * sigmoid - 1


class _Cell(nn.Module):
    """`torch.nn.LSTMCell` as one product for input and hidden; gates in the order i, f, o, g; one bias."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        bound = 1 / math.sqrt(hidden_size)
        self.weight = nn.Parameter(torch.empty(4 * hidden_size, input_size + hidden_size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(4 * hidden_size).uniform_(-bound, bound))


def _with_doubled_candidate(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """A layer's weight and bias for `_cell`."""
    assert isinstance(layer, _Cell)
    weight, bias = layer.weight, layer.bias
    factor = torch.ones_like(bias)
    factor[3 * len(factor) // 4 :] = 2
    return weight * factor[:, None], bias * factor
