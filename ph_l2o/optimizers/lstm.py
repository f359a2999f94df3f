"""The coordinatewise LSTM optimizer.

Each coordinate runs the same small LSTM on its own gradients; the LSTM's output is added to the parameter.
The gradient is an input without a special role in differentiation: a meta-gradient of first order holds it
constant, as Andrychowicz et al. do, one of second order differentiates it.

Numbers below 1e-38 (denormal in float32) make a CPU several times slower. An LSTM meets them when its gates
close: call `torch.set_flush_denormal(True)` once in each process.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ph_l2o.optimizers.base import LearnedOptimizer
from ph_l2o.optimizers.preprocessing import log_and_sign
from ph_l2o.params import Params

_TILE = 2048  # coordinates whose activations stay in a CPU's cache; measured, 1,000 to 4,000 are about equal


class LSTMState(NamedTuple):
    """What the LSTM remembers.

    Attributes:
        hidden: Outputs of each layer for each coordinate, `(B, N, num_layers, hidden_size)`.
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
        zero = params.flat.new_zeros(*params.flat.shape, self.num_layers, self.hidden_size)
        return LSTMState(zero, zero)

    def update(self, params: Params, grads: Params, loss: Tensor | None, state: LSTMState) -> tuple[Params, LSTMState]:
        """One step; see `LearnedOptimizer.update`."""
        del loss
        grad = grads.flat.flatten()
        inputs = torch.stack(log_and_sign(grad), 1) if self.preprocess else grad[:, None]
        # `split` and one `cat`: the backward pass of slices would fill a whole tensor for each tile.
        tiles = zip(*(x.split(_TILE) for x in (inputs, *(s.flatten(0, 1) for s in state))), strict=True)
        step, hidden, cell = (torch.cat(parts) for parts in zip(*(self._tile(*t) for t in tiles), strict=True))
        new = params.flat + self.output_scale * step.view_as(params.flat)
        return params.like(new), LSTMState(hidden.view_as(state.hidden), cell.view_as(state.cell))

    def _tile(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        new: list[tuple[Tensor, Tensor]] = []
        for layer, h, c in zip(self.cells, hidden.unbind(1), cell.unbind(1), strict=True):
            x, c = layer(x, h, c)
            new.append((x, c))
        hiddens, cells = zip(*new, strict=True)
        return self.output(x), torch.stack(hiddens, 1), torch.stack(cells, 1)


class _Cell(nn.Module):
    """`torch.nn.LSTMCell` as one product for input and hidden; gates in the order i, f, o, g; one bias."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        bound = 1 / math.sqrt(hidden_size)
        self.weight = nn.Parameter(torch.empty(4 * hidden_size, input_size + hidden_size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(4 * hidden_size).uniform_(-bound, bound))

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        size = cell.shape[1]
        gates = F.linear(torch.cat([x, hidden], 1), self.weight, self.bias)
        keep, candidate = gates.split((3 * size, size), 1)
        i, f, o = keep.sigmoid().chunk(3, 1)
        cell = torch.addcmul(f * cell, i, candidate.tanh())
        return o * cell.tanh(), cell
