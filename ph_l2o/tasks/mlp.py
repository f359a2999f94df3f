"""Multi-layer perceptrons, with a forward pass written by hand for many of them at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "elu": F.elu,
    "gelu": F.gelu,
    "silu": F.silu,
    "softplus": F.softplus,
}


class MLP(nn.Module):
    """Affine layers with an activation between them; inputs are flattened.

    Weights are stored as `(in, out)`, which a batched product reads in order, and start as those of `nn.Linear`:
    U(-1/√in, 1/√in).

    Args:
        sizes: Units of each layer, inputs first, >= 1.
        activation: A name of `ACTIVATIONS`.
    """

    def __init__(self, sizes: Sequence[int], activation: str = "sigmoid"):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.num_layers = len(sizes) - 1
        for k, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            bound = 1 / math.sqrt(fan_in)
            weight = torch.empty(fan_in, fan_out).uniform_(-bound, bound)
            self.register_parameter(f"weight{k}", nn.Parameter(weight))
            self.register_parameter(f"bias{k}", nn.Parameter(torch.empty(fan_out).uniform_(-bound, bound)))

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs of shape `(batch, …)` → `(batch, out)`."""
        tensors = {name: p[None] for name, p in self.named_parameters()}
        return self.batched_forward(tensors, inputs[None])[0]

    def batched_forward(
        self,
        tensors: Mapping[str, Tensor],
        inputs: Tensor,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """B networks at once: inputs of shape `(B, batch, …)` → `(B, batch, out)`.

        Args:
            tensors: Parameters of shape `(B, *shape)`.
            inputs: One batch for each network.
            activation: In place of the module's own; may differ between the B networks.
        """
        activation = self.activation if activation is None else activation
        hidden = inputs.flatten(2)
        for k in range(self.num_layers):
            hidden = torch.baddbmm(tensors[f"bias{k}"][:, None], hidden, tensors[f"weight{k}"])
            if k < self.num_layers - 1:
                hidden = activation(hidden)
        return hidden


class MixedActivation:
    """An activation for each of B networks, applied to tensors of shape `(B, …)`.

    Args:
        names: Name of each network's activation.
        device: Where the tensors are.
    """

    def __init__(self, names: Sequence[str], device: torch.device | str = "cpu"):
        self.kinds = sorted(set(names))
        self._masks = [
            torch.tensor([name == kind for name in names], device=device)[:, None, None] for kind in self.kinds
        ]

    def __call__(self, hidden: Tensor) -> Tensor:
        out = ACTIVATIONS[self.kinds[0]](hidden)
        for kind, mask in zip(self.kinds[1:], self._masks[1:], strict=True):
            out = torch.where(mask, ACTIVATIONS[kind](hidden), out)
        return out
