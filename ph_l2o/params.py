"""Parameters of a batch of optimizees: all tensors of a problem in one flat row.

One flat buffer makes an optimizer's step a few large kernels, whatever the number of tensors, and makes
coordinatewise rules one-liners. `Layout` says where each tensor lies in the row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from ph_l2o import segments


@dataclass(frozen=True)
class Layout:
    """Names and shapes of an optimizee's tensors, in the order in which they lie in a flat row.

    Args:
        names: One name for each tensor, as `nn.Module.named_parameters` gives them.
        shapes: Shape of each tensor, without the problem axis; `()` for a scalar.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of coordinates of each tensor."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def numel(self) -> int:
        """Number of coordinates of a problem, N."""
        return sum(self.sizes)

    @property
    def num_tensors(self) -> int:
        """Number of tensors, T."""
        return len(self.names)

    def expand(self, per_tensor: Tensor) -> Tensor:
        """Repeat one value for each tensor over its coordinates: shape `(…, T)` → `(…, N)`, or `(…, 1)` if T = 1."""
        if self.num_tensors == 1:
            return per_tensor
        if segments.is_tracing():
            return segments.expand(per_tensor, self.sizes)
        lead = per_tensor.shape[:-1]
        return torch.cat([v.expand(*lead, n) for v, n in zip(per_tensor.split(1, -1), self.sizes, strict=True)], -1)

    def sum(self, flat: Tensor) -> Tensor:
        """Sum over each tensor's coordinates: shape `(…, N)` → `(…, T)`."""
        if self.num_tensors == 1:
            return flat.sum(-1, keepdim=True)
        return torch.stack([part.sum(-1) for part in flat.split(self.sizes, -1)], -1)

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        """Inner products of each tensor's parts: shapes `(…, N)` and `(…, N)`, which broadcast → `(…, T)`."""
        if segments.is_tracing() and self.num_tensors > 1:
            return segments.dot(a, b, self.sizes)
        return self.sum(a * b)

    def table(self, rows: Callable[[Layout], Sequence[Any]], like: Tensor) -> Tensor:
        """Constant numbers of each tensor: what `rows` makes of a layout, `(T, …)`, made once."""
        return _table(self, rows, like.device, like.dtype)


@lru_cache(maxsize=256)
def _table(layout: Layout, rows: Callable[[Layout], Sequence[Any]], device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor(rows(layout), device=device, dtype=dtype)


@dataclass(frozen=True)
class Params(Mapping[str, Tensor]):
    """B parameter sets of one layout, as a flat tensor and as a read-only mapping from names to tensors.

    Args:
        flat: Tensor of shape `(B, N)`.
        layout: Where each tensor lies in a row.
    """

    flat: Tensor
    layout: Layout

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Params:
        """Gather tensors of shape `(B, *shape)` into one flat buffer (a copy)."""
        layout = Layout(tuple(tensors), tuple(tuple(t.shape[1:]) for t in tensors.values()))
        return cls(torch.cat([t.flatten(1) if t.dim() > 1 else t[:, None] for t in tensors.values()], 1), layout)

    @property
    def num_problems(self) -> int:
        """Number of problems, B."""
        return self.flat.shape[0]

    def like(self, flat: Tensor) -> Params:
        """The same layout over another flat tensor of shape `(B, N)`."""
        return Params(flat, self.layout)

    def tensors(self) -> dict[str, Tensor]:
        """Views of shape `(B, *shape)` by name; gradients flow through them."""
        parts = self.flat.split(self.layout.sizes, 1)
        shapes, lead = self.layout.shapes, self.flat.shape[:1]
        return {
            name: part.view(*lead, *shape)
            if part.is_contiguous()
            else part.unflatten(1, shape)
            if shape
            else part[:, 0]
            for name, part, shape in zip(self.layout.names, parts, shapes, strict=True)
        }

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.names)

    def __len__(self) -> int:
        return self.layout.num_tensors

    def detach(self) -> Params:
        """The same values, cut from the graph."""
        return self.like(self.flat.detach())
