"""Other meta-parameters in an optimizer, for the length of one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.func import functional_call

from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer

T = TypeVar("T")


def call_with(phi: Mapping[str, Tensor], optimizer: LearnedOptimizer, fn: Callable[..., T], *args: Any) -> T:
    """`fn(optimizer, *args)` with φ in place of the optimizer's own parameters.

    Meant for a whole window: swapping parameters costs more than a small inner step.
    """
    return functional_call(_Window(optimizer, fn), {f"optimizer.{name}": p for name, p in phi.items()}, args)


class _Window(nn.Module):
    def __init__(self, optimizer: LearnedOptimizer, fn: Callable[..., Any]):
        super().__init__()
        self.optimizer, self.fn = optimizer, fn

    def forward(self, *args: Any) -> Any:
        return self.fn(self.optimizer, *args)
