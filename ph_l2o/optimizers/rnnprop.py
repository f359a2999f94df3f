"""RNNprop: a coordinatewise LSTM that sees the gradient in Adam's units, and whose steps are bounded.

The paper trains it on problems whose coordinates are re-scaled at random, log scale ~ U(-3, 3), and convex functions
added to them; `meta.rescale` re-scales whole tensors. Its code cuts gradients out of the meta-gradient: order 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ph_l2o.optimizers.classical import root
from ph_l2o.optimizers.coordinatewise_lstm import CoordinatewiseLSTM
from ph_l2o.params import Params


class RNNpropState(NamedTuple):
    """What RNNprop remembers.

    Attributes:
        step: Steps done, `(B,)`.
        first: Average of the gradient m, `(B, N)`.
        second: Average of the squared gradient v, `(B, N)`.
        hidden: Outputs of each layer for each coordinate, `(B, num_layers, hidden_size, N)`.
        cell: Cells of each layer, the same shape.
    """

    step: Tensor
    first: Tensor
    second: Tensor
    hidden: Tensor
    cell: Tensor


class RNNprop(CoordinatewiseLSTM):
    """θ ← θ - output_scale · tanh(Linear(LSTM(ELU(Linear(g / s, m̂ / s))))), s = √v̂ + eps, coordinate by coordinate.

    m ← beta1 m + (1 - beta1) g and v ← beta2 v + (1 - beta2) g²; m̂ and v̂ are without the bias of the start, as Adam's.
    No step is longer than output_scale. The weights are drawn as torch draws them, not from the paper's distributions.

    Args:
        hidden_size: Units of a layer of the LSTM, and of the layer before it, >= 1.
        num_layers: Layers of the LSTM, >= 1.
        output_scale: The longest step, > 0.
        beta1: Decay of m, in [0, 1).
        beta2: Decay of v, in [0, 1).
        eps: Added to √v̂, > 0.

    Raises:
        ValueError: If an argument is out of range.

    Reference: Lv, Jiang and Li 2017, "Learning gradient descent: better generalization and longer horizons" (arXiv
    1703.03633), and the authors' code, github.com/vfleaking/rnnprop.
    """

    def __init__(
        self,
        *,
        hidden_size: int = 20,
        num_layers: int = 2,
        output_scale: float = 0.1,
        beta1: float = 0.95,
        beta2: float = 0.95,
        eps: float = 1e-8,
    ):
        super().__init__(hidden_size, hidden_size=hidden_size, num_layers=num_layers, output_scale=output_scale)
        for name, value in (("beta1", beta1), ("beta2", beta2)):
            if not 0 <= value < 1:
                raise ValueError(f"optimizer.{name}={value}: must be in [0, 1)")
        if not eps > 0:
            raise ValueError(f"optimizer.eps={eps}: must be > 0")
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self.input = nn.Linear(2, hidden_size)

    def init(self, params: Params) -> RNNpropState:
        zero, memory = torch.zeros_like(params.flat), self.zeros(params)
        return RNNpropState(torch.zeros_like(params.flat[:, 0]), zero, zero, memory, memory)

    def update(
        self, params: Params, grads: Params, loss: Tensor | None, state: RNNpropState
    ) -> tuple[Params, RNNpropState]:
        grad, step = grads.flat, state.step + 1
        first = torch.lerp(grad, state.first, self.beta1)
        second = torch.lerp(grad * grad, state.second, self.beta2)
        bias1, bias2 = (1 - beta ** step[:, None] for beta in (self.beta1, self.beta2))
        spread = root(second / bias2) + self.eps
        inputs = torch.stack([grad / spread, first / bias1 / spread], 1)
        output, *memory = self.run_layers(inputs, state.hidden, state.cell)
        flat = params.flat - self.output_scale * output.tanh()
        return params.like(flat), RNNpropState(step, first, second, *memory)

    def first_inputs(self, inputs: Tensor) -> Tensor:
        """ELU(Linear(…)) of the two inputs; see `CoordinatewiseLSTM.first_inputs`."""
        return functional.elu(torch.addmm(self.input.bias[:, None], self.input.weight, inputs))
