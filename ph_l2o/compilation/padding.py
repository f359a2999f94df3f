"""Carries in padded rows, for an update that is compiled once for all architectures; and in plain ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from ph_l2o.compilation.carries import CarrySpec, FlatCarry
from ph_l2o.compilation.slots import SlotLayout, TableFinder, slots_of
from ph_l2o.inner import Carry
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.params import Layout, Params
from ph_l2o.tasks.task import Buffers

# Of sizes unlike each other and, for one or the other, unlike a number of problems: 7 tensors in 340 slots, 8 in 356.
_EXAMPLE = Layout(tuple("abcdefg"), ((97, 23), (23,), (41, 61), (61,), (19, 29), (3,), ()))
_OTHER = Layout((*_EXAMPLE.names, "h"), (*_EXAMPLE.shapes, (256,)))


class Example(NamedTuple):
    """What an update is compiled with.

    Attributes:
        name: For messages.
        any_sizes: Sizes which stand for any sizes, each with another.
        spec: Of a carry without buffers.
        carry: That carry.
        constants: Further inputs.
        layout: Makes a layout of these constants.
    """

    name: str
    any_sizes: Mapping[int, int]
    spec: CarrySpec
    carry: FlatCarry
    constants: list[Tensor]
    layout: Callable[[Sequence[Tensor]], Layout]


class PlainRows:
    """Rows as they are; an update is then compiled for each layout.

    Attributes:
        constants: Tensors that the compiled update takes besides the carry.
    """

    def __init__(self, layout: Layout):
        self.layout = layout
        self.constants: list[Tensor] = []

    def spread(self, carry: Carry) -> Carry:
        """The carry as the compiled update takes it, without buffers."""
        return Carry(carry.params, carry.state, {})

    def gather(self, carry: Carry, buffers: Buffers) -> Carry:
        """The opposite of `spread`."""
        return Carry(carry.params, carry.state, buffers)

    def spread_row(self, row: Tensor) -> Tensor:
        """Parameters or a gradient as the compiled update takes them, contiguous."""
        return row.contiguous()

    def gather_row(self, row: Tensor) -> Tensor:
        """The opposite of `spread_row`."""
        return row

    def example(self, spec: CarrySpec, carry: FlatCarry) -> Example:
        """What the update is compiled with, where it is first met with this carry."""
        layout = self.layout
        return Example(f"{layout.numel} coordinates", {}, spec, carry, [], lambda constants: layout)


class Pattern:
    """What an optimizer and its state are like in padded rows, whatever the layout.

    Args:
        optimizer: The optimizer; it `takes_padding`.
        flat: Parameters `(B, N)`, for their number of problems, device and type.
    """

    def __init__(self, optimizer: LearnedOptimizer, flat: Tensor):
        slots, other = slots_of(_EXAMPLE, flat), slots_of(_OTHER, flat)
        if len(flat) in slots.sizes:
            slots, other = other, slots
        finder = TableFinder(slots)
        params = Params(flat.new_zeros(len(flat), slots.numel), finder)
        with torch.no_grad():
            state = optimizer.init(params)
            optimizer.update(params, params, flat.new_ones(len(flat)), state)
        self.tables = tables = tuple(finder.found)
        leaves = pytree.tree_leaves(state)
        self.has_coordinates = [x.dim() > 1 and x.shape[-1] == slots.numel for x in leaves]
        carry = Carry(params, state, {})
        spec = CarrySpec(carry)
        self.example = Example(
            "all architectures", dict(zip(slots.sizes, other.sizes, strict=True)), spec, spec.flatten(carry),
            slots.constants(tables),
            lambda constants: SlotLayout(constants, tables),
        )  # fmt: skip


class PaddedRows(PlainRows):
    """Padded rows, in which one compiled update serves all layouts."""

    def __init__(self, pattern: Pattern, layout: Layout, flat: Tensor):
        super().__init__(layout)
        self._pattern, self._slots = pattern, slots_of(layout, flat)
        self.constants = self._slots.constants(pattern.tables)

    def spread(self, carry: Carry) -> Carry:
        return self._mapped(carry, self._slots.spread, {})

    def gather(self, carry: Carry, buffers: Buffers) -> Carry:
        return self._mapped(carry, self._slots.gather, buffers)

    def spread_row(self, row: Tensor) -> Tensor:
        return self._slots.spread(row)

    def gather_row(self, row: Tensor) -> Tensor:
        return self._slots.gather(row)

    def example(self, spec: CarrySpec, carry: FlatCarry) -> Example:
        """See `PlainRows.example`; the same whatever is met first."""
        del spec, carry
        return self._pattern.example

    def _mapped(self, carry: Carry, fn: Callable[[Tensor], Tensor], buffers: Buffers) -> Carry:
        leaves, spec = pytree.tree_flatten(carry.state)
        leaves = [fn(x) if wide else x for x, wide in zip(leaves, self._pattern.has_coordinates, strict=True)]
        params = Params(fn(carry.params.flat), self.layout)
        return Carry(params, pytree.tree_unflatten(leaves, spec), buffers)
