"""The coordinatewise LSTM optimizer.

Each coordinate runs the same small LSTM on its own gradients; the LSTM's output is added to the parameter.
The gradient is an input without a special role in differentiation: a meta-gradient of first order holds it
constant, as Andrychowicz et al. do, one of second order differentiates it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ph_l2o.optimizers.coordinatewise_lstm import CoordinatewiseLSTM
from ph_l2o.optimizers.preprocessing import log_and_sign
from ph_l2o.params import Params


class LSTMState(NamedTuple):
    """What the LSTM remembers.

    Attributes:
        hidden: Outputs of each layer for each coordinate, `(B, num_layers, hidden_size, N)`.
        cell: Cells of each layer, the same shape.
    """

    hidden: Tensor
    cell: Tensor


class LSTM(CoordinatewiseLSTM):
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
        self, *, hidden_size: int = 20, num_layers: int = 2, output_scale: float = 0.1, preprocess: bool = True
    ):
        super().__init__(
            2 if preprocess else 1, hidden_size=hidden_size, num_layers=num_layers, output_scale=output_scale
        )
        self.preprocess = preprocess

    def init(self, params: Params) -> LSTMState:
        zero = self.zeros(params)
        return LSTMState(zero, zero)

    def update(self, params: Params, grads: Params, loss: Tensor | None, state: LSTMState) -> tuple[Params, LSTMState]:
        inputs = torch.stack(log_and_sign(grads.flat), 1) if self.preprocess else grads.flat[:, None]
        output, *memory = self.run_layers(inputs, state.hidden, state.cell)
        return params.like(params.flat + self.output_scale * output), LSTMState(*memory)
