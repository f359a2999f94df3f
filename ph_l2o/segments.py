"""Operations between coordinates and tensors in the form that a compiler makes fast.

Eagerly, few large kernels are fastest. A compiled graph rather has no copies: sums read their part of a row in
place, and a number for each tensor reaches its coordinates by selection, within the loop that uses it. `Layout` and the
optimizers take this form while a graph is traced (`is_tracing`); both forms compute the same.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

_state = {"tracing": False}


def is_tracing() -> bool:
    """Whether a graph for the compiler is being traced."""
    return _state["tracing"]


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """While a graph for the compiler is traced."""
    before, _state["tracing"] = _state["tracing"], True
    try:
        yield
    finally:
        _state["tracing"] = before


def expand(per_tensor: Tensor, sizes: Sequence[int]) -> Tensor:
    """Repeat one value for each tensor over its coordinates: `(…, T)` → `(…, N)`."""
    return _Expand.apply(per_tensor, tuple(sizes))  # type: ignore[return-value]


def dot(a: Tensor, b: Tensor, sizes: Sequence[int]) -> Tensor:
    """Inner products of each tensor's parts: `(…, N)` and `(…, N)`, which broadcast → `(…, T)`."""
    return _Dot.apply(a, b, tuple(sizes))  # type: ignore[return-value]


def _select(per_tensor: Tensor, sizes: Sequence[int]) -> Tensor:
    # In float: it is exact up to 2**24 coordinates, and a vector unit compares more of them at once.
    dtype = torch.float32 if sum(sizes) < 2**24 else torch.float64
    at = torch.arange(sum(sizes), dtype=dtype, device=per_tensor.device)
    *others, out = per_tensor.split(1, -1)
    ends = list(itertools.accumulate(sizes))
    for value, end in zip(reversed(others), ends[-2::-1], strict=True):
        out = torch.where(at < end, value, out)
    return out


def _sum(flat: Tensor, sizes: Sequence[int]) -> Tensor:
    return torch.stack([part.sum(-1) for part in flat.split(list(sizes), -1)], -1)


class _Expand(torch.autograd.Function):
    """`expand`, whose derivative is a sum over each part, not over the whole row under a mask."""

    generate_vmap_rule = True

    @staticmethod
    def forward(per_tensor: Tensor, sizes: tuple[int, ...]) -> Tensor:
        return _select(per_tensor, sizes)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.sizes = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _sum(grads[0], ctx.sizes), None


class _Dot(torch.autograd.Function):
    """`dot`, whose derivative is a selection, not a copy."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor, sizes: tuple[int, ...]) -> Tensor:
        parts = zip(a.split(list(sizes), -1), b.split(list(sizes), -1), strict=True)
        return torch.stack([(x * y).sum(-1) for x, y in parts], -1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *saved, ctx.sizes = inputs
        ctx.save_for_backward(*saved)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        a, b = ctx.saved_tensors
        grad = _select(grads[0], ctx.sizes)
        return (grad * b).sum_to_size(a.shape), (grad * a).sum_to_size(b.shape), None
