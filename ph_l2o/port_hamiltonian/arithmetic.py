"""The arithmetic in which the energy and the controller are written, once for both optimizers.

`Tensors` is for B problems, traced and differentiated: what belongs to a problem has shape `(B,)`, to its tensors
`(B, T)`. `Numbers` is for one problem: floats, and numpy arrays `(T,)`, in a tenth of the time that operations on small
tensors take, which would be half of a step in place. `tests/optim/test_same_steps.py` compares them step by step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ph_l2o.params import Layout

Number = Any  # a tensor `(B,)`, or a float
PerTensor = Any  # a tensor `(B, T)`, or an array `(T,)`
Rows = Callable[[Layout], Sequence[Any]]


def arithmetic(x: Any) -> Any:
    """`Tensors` for a tensor, else `Numbers`."""
    return Tensors if isinstance(x, Tensor) else Numbers


class Tensors:
    """Operations on tensors."""

    where, lerp = staticmethod(torch.where), staticmethod(torch.lerp)
    minimum, maximum = staticmethod(torch.minimum), staticmethod(torch.maximum)
    at_least, at_most, clip = staticmethod(torch.clamp_min), staticmethod(torch.clamp_max), staticmethod(torch.clamp)
    sqrt, rsqrt, exp = staticmethod(torch.sqrt), staticmethod(torch.rsqrt), staticmethod(torch.exp)
    log, log1p = staticmethod(torch.log), staticmethod(torch.log1p)
    tanh, sigmoid = staticmethod(torch.tanh), staticmethod(torch.sigmoid)
    isfinite, detach = staticmethod(torch.isfinite), staticmethod(torch.detach)
    zeros_like = staticmethod(torch.zeros_like)

    @staticmethod
    def total(x: Tensor) -> Tensor:
        """Sum over tensors."""
        return x.sum(-1)

    @staticmethod
    def per_tensor(x: Tensor) -> Tensor:
        """What belongs to a problem, for arithmetic with what belongs to its tensors."""
        return x[..., None]

    @staticmethod
    def like(x: Tensor, other: Tensor) -> Tensor:
        """A number that all problems share, for each of them."""
        return x.expand_as(other)

    @staticmethod
    def for_each(constants: tuple[float, ...], function: Callable[..., Tensor], *xs: Tensor) -> Tensor:
        """`function` of each constant and of numbers for each problem; the constants' axis is in front."""
        return function(_constants(constants, xs[0].device, xs[0].dtype), *(x[:, None] for x in xs)).mT

    @staticmethod
    def at_once(function: Callable[[Tensor], Tensor], *xs: Tensor) -> Sequence[Tensor]:
        """`function` of each."""
        return function(torch.stack(xs, 1)).unbind(1)

    @staticmethod
    def split(x: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
        """Parts of the last axis."""
        return x.split(sizes, -1)

    @staticmethod
    def unstack(x: Tensor) -> Sequence[Tensor]:
        """Along the last axis."""
        return x.unbind(-1)

    @staticmethod
    def table(layout: Layout, rows: Rows, like: Tensor) -> Tensor:
        """Constants of each tensor; see `Layout.table`."""
        return layout.table(rows, like)

    @staticmethod
    def columns(of_tensors: Sequence[Tensor], of_problem: Sequence[Tensor], of_layout: Tensor) -> Tensor:
        """All in a row for each tensor, `(B, T, k)`."""
        row = torch.stack(list(of_problem), 1)[:, None].expand(-1, len(of_layout), -1)
        return torch.cat([*of_tensors, row, of_layout.expand(len(row), -1, -1)], 2)

    @staticmethod
    def by_rows(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """A network of each row."""
        return network(x.flatten(0, 1)).unflatten(0, (-1, x.shape[1]))


class Numbers:
    """The same on floats, and on arrays where something belongs to tensors."""

    minimum, maximum = staticmethod(min), staticmethod(max)
    isfinite, log1p, tanh = staticmethod(math.isfinite), staticmethod(math.log1p), staticmethod(math.tanh)

    @staticmethod
    def where(condition: bool, x: Any, other: Any) -> Any:
        return x if condition else other

    @staticmethod
    def lerp(start: float, end: float, weight: float) -> float:
        return start + weight * (end - start)

    @staticmethod
    def at_least(x: Any, least: float) -> Any:
        if isinstance(x, float):
            return x if x > least else least
        return np.maximum(x, least)

    @staticmethod
    def at_most(x: float, most: float) -> float:
        return x if x < most else most

    @staticmethod
    def clip(x: Any, least: float, most: float) -> Any:
        return min(max(x, least), most) if isinstance(x, float) else x.clip(least, most)

    @staticmethod
    def sqrt(x: Any) -> Any:
        return math.sqrt(x) if isinstance(x, float) else np.sqrt(x)

    @staticmethod
    def rsqrt(x: Any) -> Any:
        return 1 / (math.sqrt(x) if isinstance(x, float) else np.sqrt(x))

    @staticmethod
    def exp(x: Any) -> Any:
        return math.exp(x) if isinstance(x, float) else np.exp(x)

    @staticmethod
    def log(x: Any) -> Any:
        return math.log(x) if isinstance(x, float) else np.log(x)

    @staticmethod
    def sigmoid(x: Any) -> Any:
        small = np.exp(-np.abs(x))
        return np.where(x >= 0, 1.0, small) / (1 + small)

    @staticmethod
    def zeros_like(x: float) -> float:
        return 0.0

    @staticmethod
    def detach(x: float) -> float:
        return x

    per_tensor = detach

    @staticmethod
    def like(x: float, other: float) -> float:
        return x

    @staticmethod
    def total(x: Any) -> float:
        return float(x.sum())

    @staticmethod
    def for_each(constants: tuple[float, ...], function: Callable[..., float], *xs: float) -> list[float]:
        return [function(constant, *xs) for constant in constants]

    @staticmethod
    def at_once(function: Callable[[float], float], *xs: float) -> list[float]:
        return [function(x) for x in xs]

    @staticmethod
    def split(x: Any, sizes: Sequence[int]) -> list[Any]:
        return [x[..., end - size : end] for size, end in zip(sizes, itertools.accumulate(sizes), strict=True)]

    @staticmethod
    def unstack(x: Any) -> Any:
        return x.T

    @staticmethod
    def table(layout: Layout, rows: Rows, like: float) -> Any:
        return _array(layout, rows)

    @staticmethod
    def columns(of_tensors: Sequence[Any], of_problem: Sequence[float], of_layout: Any) -> Any:
        row = np.array(of_problem)
        shared = np.empty((len(of_layout), len(row)))
        shared[...] = row
        return np.concatenate((*of_tensors, shared, of_layout), 1)

    @staticmethod
    def by_rows(network: Callable[[Any], Any], x: Any) -> Any:
        return network(x)


@lru_cache(maxsize=64)
def _constants(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, device=device, dtype=dtype)


@lru_cache(maxsize=64)
def _array(layout: Layout, rows: Rows) -> Any:
    return np.array(rows(layout), dtype=np.float64)
