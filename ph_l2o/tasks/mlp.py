"""Multi-layer perceptrons, with a forward pass written by hand for many of them at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ph_l2o.checks import one_of
from ph_l2o.tasks.batched import BatchedModule, affine, normalized

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "elu": F.elu,
    "gelu": F.gelu,
    "silu": F.silu,
    "softplus": F.softplus,
}


def checked_activations(activation: str | Sequence[str]) -> tuple[str, ...]:
    """One name or several of `ACTIVATIONS` as a tuple.

    Raises:
        ValueError: If there is none, or one of another name.
    """
    if isinstance(activation, str) or not isinstance(activation, Sequence):
        activation = (activation,)
    if not activation:
        raise ValueError("task.activation=[]: must name at least one activation")
    return tuple(one_of("task.activation", name, ACTIVATIONS) for name in activation)


def checked_sizes(sizes: Sequence[int], key: str = "hidden_sizes") -> tuple[int, ...]:
    """Units of hidden layers as a tuple.

    Raises:
        ValueError: If they are not whole numbers >= 1.
    """
    if not isinstance(sizes, Sequence) or any(not isinstance(n, int) or n < 1 for n in sizes):
        raise ValueError(f"task.{key}={sizes}: must be a list of whole numbers >= 1 (units)")
    return tuple(sizes)


class MLP(BatchedModule):
    """Affine layers with an activation between them; inputs are flattened.

    Args:
        sizes: Units of each layer, inputs first, >= 1.
        activation: A name of `ACTIVATIONS`.
        norm: Before each activation: `layer` (Ba et al. 2016), `batch` (Ioffe and Szegedy 2015, by the statistics of
            the batch at hand in tests too), or None.
    """

    def __init__(self, sizes: Sequence[int], activation: str = "sigmoid", norm: str | None = None):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.num_layers, self.norm = len(sizes) - 1, norm
        for k, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            self.add_affine(str(k), fan_in, fan_out)
            if norm is not None and k < self.num_layers - 1:
                self.add_norm(str(k), fan_out)

    def batched_forward(
        self, tensors: Mapping[str, Tensor], inputs: Tensor, activation: Callable[[Tensor], Tensor] | None = None
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
            hidden = affine(tensors, str(k), hidden)
            if k < self.num_layers - 1:
                hidden = hidden if self.norm is None else normalized(tensors, str(k), hidden, self.norm)
                hidden = activation(hidden)
        return hidden


class MixedActivation:
    """An activation for each of B networks, applied to tensors of shape `(B, …)`.

    Args:
        names: Name of each network's activation.
        device: Where the tensors are.
    """

    def __init__(self, names: Sequence[str], device: torch.device | str = "cpu"):
        self.first, *others = sorted(set(names))
        self.masks = {
            other: torch.tensor([name == other for name in names], device=device)[:, None, None] for other in others
        }

    def __call__(self, hidden: Tensor) -> Tensor:
        out = ACTIVATIONS[self.first](hidden)
        for name, mask in self.masks.items():
            out = torch.where(mask, ACTIVATIONS[name](hidden), out)
        return out
