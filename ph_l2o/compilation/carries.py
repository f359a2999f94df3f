"""Carries as lists of tensors, in the order in which compiled functions take them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from ph_l2o.inner import Carry
from ph_l2o.params import Params


class FlatCarry(NamedTuple):
    """A carry as lists of tensors.

    Attributes:
        smooth: Parameters and the state's floating-point tensors, which derivatives pass; its numbers for each problem
            are the columns of one tensor, since each input and output of compiled code costs about a microsecond.
        rest: The state's other tensors, then buffers.
    """

    smooth: list[Tensor]
    rest: list[Tensor]


class CarrySpec:
    """How a carry is put together, to flatten it and others like it, and back.

    Args:
        carry: An example.

    Attributes:
        layout: Of its parameters.
    """

    def __init__(self, carry: Carry):
        leaves, self._state = pytree.tree_flatten(carry.state)
        flat = carry.params.flat
        rest = [k for k, x in enumerate(leaves) if not x.is_floating_point()]
        numbers = [k for k, x in enumerate(leaves) if x.shape == flat.shape[:-1] and x.dtype == flat.dtype]
        self._numbers = numbers if len(numbers) > 1 else []
        others = [k for k in range(len(leaves)) if k not in (*rest, *self._numbers)]
        self._order = [*others, *self._numbers, *rest]
        self._num_others = len(others)
        self._buffers = tuple(carry.buffers)
        self.layout = carry.params.layout

    def flatten(self, carry: Carry) -> FlatCarry:
        """The carry's tensors, contiguous: compiled functions count on strides."""
        leaves = pytree.tree_leaves(carry.state)
        ordered = [leaves[k] for k in self._order]
        end = self._num_others + len(self._numbers)
        others, numbers, rest = ordered[: self._num_others], ordered[self._num_others : end], ordered[end:]
        packed = [torch.stack(numbers, -1)] if numbers else []
        smooth, rest = [carry.params.flat, *others, *packed], [*rest, *carry.buffers.values()]
        return FlatCarry([x.contiguous() for x in smooth], [x.contiguous() for x in rest])

    def unflatten(self, flat: FlatCarry) -> Carry:
        """The carry of these tensors."""
        theta, *smooth = flat.smooth
        numbers = smooth.pop().unbind(-1) if self._numbers else ()
        num_rest = len(self._order) - len(smooth) - len(numbers)
        leaves = dict(zip(self._order, [*smooth, *numbers, *flat.rest[:num_rest]], strict=True))
        state = pytree.tree_unflatten([leaves[k] for k in range(len(leaves))], self._state)
        buffers = dict(zip(self._buffers, flat.rest[num_rest:], strict=True))
        return Carry(Params(theta, self.layout), state, buffers)


def shapes(tensors: Iterable[Tensor]) -> Hashable:
    """Shapes, types and devices: what a compiled function is compiled for."""
    return tuple((tuple(x.shape), x.dtype, x.device) for x in tensors)
