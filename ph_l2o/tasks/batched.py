"""Modules whose forward pass is written by hand for many of them at once, cheaper than `vmap`."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORMS = ("layer", "batch")
_EPS = 1e-5


def checked_norm(norm: str | None, key: str = "norm") -> str | None:
    """The norm.

    Raises:
        ValueError: If it is none of `NORMS`, nor None.
    """
    if norm not in (None, *NORMS):
        raise ValueError(f"task.{key}={norm}: must be {', '.join(NORMS)} or null")
    return norm


class BatchedModule(nn.Module):
    """A module with `batched_forward`, which a single forward pass uses as well."""

    def batched_forward(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """B modules at once.

        Args:
            tensors: Parameters of shape `(B, *shape)`.
            inputs: One batch for each module, `(B, batch, …)`.

        Returns:
            Outputs of shape `(B, batch, …)`.
        """
        raise NotImplementedError

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs of shape `(batch, …)` → outputs `(batch, …)`."""
        tensors = {name: p[None] for name, p in self.named_parameters()}
        return self.batched_forward(tensors, inputs[None])[0]

    def add_affine(self, name: str, fan_in: int, fan_out: int) -> None:
        """Parameters `weight{name}` of shape `(in, out)`, which a batched product reads in order, and `bias{name}`.

        They start as those of `nn.Linear`: U(-1/√in, 1/√in).
        """
        bound = 1 / math.sqrt(fan_in)
        weight = torch.empty(fan_in, fan_out).uniform_(-bound, bound)
        self.register_parameter(f"weight{name}", nn.Parameter(weight))
        self.register_parameter(f"bias{name}", nn.Parameter(torch.empty(fan_out).uniform_(-bound, bound)))

    def add_norm(self, name: str, units: int) -> None:
        """Parameters `gain{name}`, ones, and `shift{name}`, zeros, of shape `(units,)`."""
        self.register_parameter(f"gain{name}", nn.Parameter(torch.ones(units)))
        self.register_parameter(f"shift{name}", nn.Parameter(torch.zeros(units)))


def affine(tensors: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """`(B, …, in)` → `(B, …, out)`."""
    rows = x.flatten(1, -2) if x.dim() != 3 else x
    out = torch.baddbmm(tensors[f"bias{name}"][:, None], rows, tensors[f"weight{name}"])
    return out.unflatten(1, x.shape[1:-1]) if x.dim() != 3 else out


def normalized(tensors: Mapping[str, Tensor], name: str, x: Tensor, kind: str = "layer") -> Tensor:
    """`(B, …, units)` at mean 0 and variance 1 over the units (`layer`) or the batch (`batch`), gained and shifted."""
    if kind == "layer":
        x = F.layer_norm(x, x.shape[-1:], eps=_EPS)
    else:
        x = x - x.mean(1, keepdim=True)
        x = x * (x.square().mean(1, keepdim=True) + _EPS).rsqrt()
    shape = (x.shape[0], *[1] * (x.dim() - 2), x.shape[-1])
    return x * tensors[f"gain{name}"].view(shape) + tensors[f"shift{name}"].view(shape)
