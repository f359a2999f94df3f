"""The meta-parameters φ: by name, in one row, and in an optimizer for the length of one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer

T = TypeVar("T")


def trained(optimizer: LearnedOptimizer) -> dict[str, nn.Parameter]:
    """The meta-parameters that meta-training changes: those that require a gradient."""
    return {name: p for name, p in optimizer.named_parameters() if p.requires_grad}


def size(phi: Mapping[str, Tensor]) -> int:
    """Number of meta-parameters, D."""
    return sum(p.numel() for p in phi.values())


def split(rows: Tensor, phi: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rows of all meta-parameters by name: `(…, D)` → `(…, *shape)`."""
    parts = rows.split([p.numel() for p in phi.values()], -1)
    lead = rows.shape[:-1]
    return {name: part.reshape(lead + p.shape) for (name, p), part in zip(phi.items(), parts, strict=True)}


def join(phi: Mapping[str, Tensor]) -> Tensor:
    """All meta-parameters in one row `(D,)`, cut from the graph; the opposite of `split`."""
    return torch.cat([p.detach().flatten() for p in phi.values()])


def call_with(phi: Mapping[str, Tensor], optimizer: LearnedOptimizer, fn: Callable[..., T], *args: Any) -> T:
    """`fn(*args)`, during which the optimizer has φ in place of its own parameters.

    Meant for a whole window: swapping parameters costs more than a small inner step.
    """
    return functional_call(_Call(optimizer, fn), {f"optimizer.{name}": p for name, p in phi.items()}, args)


class _Call(nn.Module):
    def __init__(self, optimizer: LearnedOptimizer, fn: Callable[..., Any]):
        super().__init__()
        self.optimizer, self.fn = optimizer, fn

    def forward(self, *args: Any) -> Any:
        return self.fn(*args)
