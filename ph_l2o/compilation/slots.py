"""Padded rows of coordinates, so that one compiled update serves all architectures.

Each tensor takes up a whole number of slots of 16 coordinates. Sums over tensors are then sums over slots, which a
compiler makes fast, and a small product with a matrix that says which slot is of which tensor: both for any number of
slots and tensors, where a split into tensors would have their sizes in the code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ph_l2o.params import Layout

WIDTH = 16
Rows = Callable[[Layout], Sequence[Any]]


class Slots:
    """Where the coordinates of a layout lie in a padded row.

    Args:
        layout: The layout.
        like: Gives device and floating-point type.

    Attributes:
        numel: Coordinates of a padded row.
        sizes: Of a padded row in coordinates, slots and tensors.
    """

    def __init__(self, layout: Layout, like: Tensor):
        self.layout, self._like = layout, like.new_empty(0)
        counts = torch.tensor([math.ceil(n / WIDTH) for n in layout.sizes])
        begins = WIDTH * (counts.cumsum(0) - counts)
        places = [torch.arange(n) + begin for n, begin in zip(layout.sizes, begins.tolist(), strict=True)]
        self.numel = WIDTH * int(counts.sum())
        self._place = torch.cat(places).to(like.device)
        owner = torch.arange(layout.num_tensors).repeat_interleave(counts)
        self._member = torch.nn.functional.one_hot(owner, layout.num_tensors).to(like)
        self._is_real = self.spread(like.new_ones(layout.numel))
        self.sizes = (self.numel, int(counts.sum()), layout.num_tensors)

    def spread(self, row: Tensor) -> Tensor:
        """Coordinates `(…, N)` in a padded row, with zeros between them."""
        return row.new_zeros(*row.shape[:-1], self.numel).index_copy_(-1, self._place, row)

    def gather(self, row: Tensor) -> Tensor:
        """The opposite of `spread`."""
        return row.index_select(-1, self._place)

    def constants(self, tables: Sequence[Rows]) -> list[Tensor]:
        """What a `SlotLayout` takes."""
        return [self._member, self._is_real, *(self.layout.table(rows, self._like) for rows in tables)]


@lru_cache(maxsize=256)
def _slots(layout: Layout, device: torch.device, dtype: torch.dtype) -> Slots:
    return Slots(layout, torch.empty(0, device=device, dtype=dtype))


def slots_of(layout: Layout, like: Tensor) -> Slots:
    """The slots of a layout, made once."""
    return _slots(layout, like.device, like.dtype)


class SlotLayout(Layout):
    """A layout of padded rows, made of tensors alone.

    Args:
        constants: Matrix `(slots, T)` of ones where a slot is of a tensor; ones `(N,)` at coordinates that are no
            padding; then the tables.
        tables: What the tables are of, in the same order.
    """

    _member: Tensor
    _is_real: Tensor
    _tables: dict[Rows, Tensor]

    def __init__(self, constants: Sequence[Tensor], tables: Sequence[Rows]):
        super().__init__((), ())
        member, is_real, *found = constants
        vars(self).update(_member=member, _is_real=is_real, _tables=dict(zip(tables, found, strict=True)))

    @property
    def num_tensors(self) -> int:
        """Number of tensors, T."""
        return self._member.shape[1]

    def expand(self, per_tensor: Tensor) -> Tensor:
        spread = per_tensor @ self._member.T
        return spread[..., None].expand(*spread.shape, WIDTH).flatten(-2)

    def sum(self, flat: Tensor) -> Tensor:
        return (flat * self._is_real).unflatten(-1, (-1, WIDTH)).sum(-1) @ self._member

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        return self.sum(a * b)

    def table(self, rows: Rows, like: Tensor) -> Tensor:
        del like
        return self._tables[rows]


class TableFinder(SlotLayout):
    """A `SlotLayout` that finds out which tables an optimizer asks for.

    Attributes:
        found: What they are of.
    """

    found: list[Rows]
    _slots: Slots

    def __init__(self, slots: Slots):
        super().__init__(slots.constants(()), ())
        vars(self).update(_slots=slots, found=[])

    def table(self, rows: Rows, like: Tensor) -> Tensor:
        if rows not in self.found:
            self.found.append(rows)
        return self._slots.layout.table(rows, like)
