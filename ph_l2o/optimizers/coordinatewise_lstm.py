"""Layers of an LSTM that every coordinate runs for itself, with weights that all share.

Numbers below 1e-38 (denormal in float32) make a CPU several times slower. An LSTM meets them when its gates
close: call `torch.set_flush_denormal(True)` once in each process.
"""

from __future__ import annotations

import math
from itertools import chain, repeat
from typing import ClassVar

import torch
from torch import Tensor, nn

from ph_l2o import segments
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.params import Params

# Coordinates whose activations stay in a CPU's cache; measured, 2,000 to 8,000 are about equal.
_TILE = 4096
_MERGED = 512  # problems of fewer coordinates share a tile; for larger ones that would be a copy for nothing

Weights = list[tuple[Tensor, Tensor]]


class CoordinatewiseLSTM(LearnedOptimizer):
    """Base of optimizers whose step comes out of such an LSTM.

    Args:
        input_size: Inputs of the first layer for a coordinate.
        hidden_size: Hidden units of a layer, >= 1.
        num_layers: Layers, >= 1.
        output_scale: Factor of what is added to the parameter, > 0.

    Raises:
        ValueError: If an argument is out of range.
    """

    takes_padding: ClassVar[bool] = True

    def __init__(self, input_size: int, *, hidden_size: int, num_layers: int, output_scale: float):
        super().__init__()
        if hidden_size < 1:
            raise ValueError(f"optimizer.hidden_size={hidden_size}: must be >= 1 (hidden units of a layer)")
        if num_layers < 1:
            raise ValueError(f"optimizer.num_layers={num_layers}: must be >= 1")
        if not output_scale > 0:
            raise ValueError(f"optimizer.output_scale={output_scale}: must be > 0")
        self.hidden_size, self.num_layers, self.output_scale = hidden_size, num_layers, output_scale
        sizes = chain((input_size,), repeat(hidden_size, num_layers - 1))
        self.cells = nn.ModuleList(_Cell(size, hidden_size) for size in sizes)
        self.output = nn.Linear(hidden_size, 1)

    def zeros(self, params: Params) -> Tensor:
        """Hidden units, or cells, before the first step, `(B, num_layers, hidden_size, N)`."""
        batch, coordinates = params.flat.shape
        return params.flat.new_zeros(batch, self.num_layers, self.hidden_size, coordinates)

    def run_layers(self, inputs: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step of the LSTM.

        Args:
            inputs: Of each coordinate, `(B, …, N)`; `first_inputs` makes those of the first layer of them.
            hidden: As `zeros`.
            cell: As `zeros`.

        Returns:
            The output `(B, N)`, and the next hidden units and cells.
        """
        weights = [_with_doubled_candidate(layer) for layer in self.cells]
        rows, (batch, *_, coordinates) = (inputs, hidden, cell), inputs.shape
        if coordinates < _MERGED:
            merged = self._coordinates(weights, *(x.movedim(0, -2).flatten(-2) for x in rows))
            output, *after = (x.unflatten(-1, (batch, coordinates)).movedim(-2, 0) for x in merged)
        else:
            each = [self._coordinates(weights, *problem) for problem in zip(*rows, strict=True)]
            output, *after = (torch.stack(parts) for parts in zip(*each, strict=True))
        return output, after[0], after[1]

    def first_inputs(self, inputs: Tensor) -> Tensor:
        """Inputs of the first layer `(input_size, n)`, made of those of n coordinates `(…, n)`."""
        return inputs

    def _coordinates(self, weights: Weights, inputs: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, ...]:
        """The output `(n,)` and the next state of n coordinates, which are the last axis."""
        # A compiled graph is larger for every tile. Otherwise `split` and one `cat`: the backward pass of slices would
        # fill a whole tensor for each tile.
        size = inputs.shape[-1] if segments.is_tracing() else _TILE
        tiles = zip(*(x.split(size, -1) for x in (inputs, hidden, cell)), strict=True)
        return tuple(_joined(parts) for parts in zip(*(self._tile(weights, *t) for t in tiles), strict=True))

    def _tile(self, weights: Weights, inputs: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, new = self.first_inputs(inputs), list[tuple[Tensor, Tensor]]()
        for (weight, bias), h, c in zip(weights, hidden, cell, strict=True):
            x, c = _cell(weight, bias, x, h, c)
            new.append((x, c))
        hiddens, cells = zip(*new, strict=True)
        output = torch.addmm(self.output.bias[:, None], self.output.weight, x)[0]
        return output, torch.stack(hiddens), torch.stack(cells)


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
