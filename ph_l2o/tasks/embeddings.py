"""Embeddings written out in plain operations.

Under `vmap`, torch's `embedding` gives a gradient to the padding's row, `sparse` gradients have no rule, and
`embedding_bag` has no second derivative. Under `PlainEmbedding` both compute the same as outside of vmap.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class PlainEmbedding(TorchFunctionMode):
    """A context in which torch's embeddings run as plain operations."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.embedding:
            return _embedding(*args, **kwargs)
        if func is F.embedding_bag:
            return _bag(*args, **kwargs)
        return func(*args, **kwargs)


def _embedding(
    tokens: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """`sparse` only says how the gradient is kept, here densely."""
    del norm_type, sparse
    if max_norm is not None:
        raise ValueError("task.model: an embedding with max_norm changes its weight in a forward pass; leave it out")
    if scale_grad_by_freq:
        raise ValueError("task.model: an embedding with scale_grad_by_freq has no second derivative; leave it out")
    if tokens.is_floating_point():
        raise ValueError(f"task.model: an embedding's inputs must be whole numbers, not {tokens.dtype}")
    if padding_idx is not None:
        rows = torch.arange(len(weight), device=weight.device)[:, None]
        weight = torch.where(rows == padding_idx % len(weight), weight.detach(), weight)
    return torch.embedding(weight, tokens)


def _bag(
    tokens: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Tokens `(bags, length)` → sums, means or maxima `(bags, width)`; padding counts for nothing."""
    del include_last_offset
    if offsets is not None or tokens.dim() != 2:
        raise ValueError("task.model: an EmbeddingBag needs bags of one length, (bags, length); pad them instead")
    rows = _embedding(tokens, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    counted = torch.ones_like(tokens) if padding_idx is None else tokens != padding_idx % len(weight)
    counted = counted.to(rows)[..., None]
    if per_sample_weights is not None:
        rows = rows * per_sample_weights[..., None]
    if mode == "max":
        least = torch.where(counted > 0, rows, -torch.inf).amax(1)
        return torch.where(counted.sum(1) > 0, least, 0.0)
    total = (rows * counted).sum(1)
    return total if mode == "sum" else total / counted.sum(1).clamp(min=1)
