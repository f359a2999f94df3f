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
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ph_l2o.params import Layout

Number = Any  # a tensor `(B,)`, or a float
PerTensor = Any  # a tensor `(B, T)`, or an array `(T,)`


def arithmetic(x: Any) -> Any:
    """`Tensors` for a tensor, else `Numbers`."""
    return Tensors if isinstance(x, Tensor) else Numbers


def _number_or_array(of_number: Callable[..., float], of_array: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, *others: of_number(x, *others) if isinstance(x, float) else of_array(x, *others)


def _constants_first(constants: tuple[float, ...], function: Callable[..., Tensor], *xs: Tensor) -> Tensor:
    return function(_constants(constants, xs[0].device, xs[0].dtype), *(x[:, None] for x in xs)).mT


@lru_cache(maxsize=64)
def _constants(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, device=device, dtype=dtype)


@lru_cache(maxsize=64)
def _array(layout: Layout, rows: Callable[[Layout], Sequence[Any]]) -> Any:
    return np.array(rows(layout), dtype=np.float64)


def _split_array(x: Any, sizes: Sequence[int]) -> list[Any]:
    return [x[..., end - size : end] for size, end in zip(sizes, itertools.accumulate(sizes), strict=True)]


def _sigmoid(x: Any) -> Any:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1 + small)


def _columns(of_tensors: Sequence[Tensor], of_problem: Sequence[Tensor], of_layout: Tensor) -> Tensor:
    row = torch.stack(list(of_problem), 1)[:, None].expand(-1, of_tensors[0].shape[1], -1)
    return torch.cat([*of_tensors, row, of_layout.expand(len(row), -1, -1)], 2)


def _array_columns(of_tensors: Sequence[Any], of_problem: Sequence[float], of_layout: Any) -> Any:
    row = np.empty((len(of_layout), len(of_problem)))
    row[...] = np.array(of_problem)
    return np.concatenate((*of_tensors, row, of_layout), 1)


_OPERATIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    # Of numbers of a problem.
    "minimum": (torch.minimum, min),
    "maximum": (torch.maximum, max),
    "at_most": (torch.clamp_max, min),
    "lerp": (torch.lerp, lambda start, end, weight: start + weight * (end - start)),
    "round": (torch.round, round),
    "tanh": (torch.tanh, math.tanh),
    "isfinite": (torch.isfinite, math.isfinite),
    "zeros_like": (torch.zeros_like, lambda x: 0.0),
    "like": (Tensor.expand_as, lambda x, other: x),  # a number that all problems share
    # `function` of each of several, and of each of several constants with the same; their axis is in front.
    "each": (lambda function, *xs: function(torch.stack(xs, 1)).mT, lambda function, *xs: [function(x) for x in xs]),
    "for_each": (_constants_first, lambda constants, function, *xs: [function(c, *xs) for c in constants]),
    # Of these or of numbers of its tensors.
    "where": (torch.where, lambda condition, x, other: x if condition else other),
    "lesser": (torch.minimum, np.minimum),
    "at_least": (torch.clamp_min, _number_or_array(max, np.maximum)),
    "clip": (torch.clamp, _number_or_array(lambda x, least, most: min(max(x, least), most), np.clip)),
    "sqrt": (torch.sqrt, _number_or_array(math.sqrt, np.sqrt)),
    "rsqrt": (torch.rsqrt, lambda x: 1 / math.sqrt(x)),
    "exp": (torch.exp, _number_or_array(math.exp, np.exp)),
    "log": (torch.log, _number_or_array(math.log, np.log)),
    "detach": (torch.detach, lambda x: x),
    # Between a problem and its tensors.
    "total": (lambda x: x.sum(-1), lambda x: float(x.sum())),
    "per_tensor": (lambda x: x[..., None], lambda x: x),
    # Of numbers of tensors, and rows of them `(B, T, k)` or `(T, k)`.
    "sigmoid": (torch.sigmoid, _sigmoid),
    "split": (lambda x, sizes: x.split(sizes, -1), _split_array),
    "unstack": (lambda x: x.unbind(-1), lambda x: x.T),
    "table": (lambda layout, rows, like: layout.table(rows, like), lambda layout, rows, like: _array(layout, rows)),
    "columns": (_columns, _array_columns),
}
Tensors = SimpleNamespace(**{name: on_tensors for name, (on_tensors, _) in _OPERATIONS.items()})
Numbers = SimpleNamespace(**{name: on_numbers for name, (_, on_numbers) in _OPERATIONS.items()})
