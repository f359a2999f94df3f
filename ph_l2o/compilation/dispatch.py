"""A function seen operation by operation: what it computes and reads, and what its compiler is better told.

Both modes see plain tensors, whatever derivatives `torch.func` takes above them.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ph_l2o.compilation.torch_versions import TorchDispatchMode, is_pointwise, is_product, is_view, why_not
from ph_l2o.errors import CompileError

_SUMS = frozenset(["amax", "amin", "mean", "sum"])
_LARGE = 2**14  # numbers from which a sum is kept for the way back
_COSTLY = frozenset(["acos", "atan", "cos", "erf", "exp", "expm1", "log", "log1p", "pow", "sigmoid", "sin", "tanh"])
# What is at least so many times larger than what it reads would compute it too often.
_RATIO, _RATIO_IF_COSTLY = 64, 2
_MANY = 1000  # stands for a size that is not known


class Recorder(TorchDispatchMode):
    """While a function runs: which tensors it reads that it was not given, and a digest of all that it computes.

    Args:
        given: What it is given.

    Attributes:
        constants: Other tensors that it reads, in the order in which it meets them.
        digest: Of operations, their arguments and how they hang together; equal for functions that compute the same.

    Raises:
        CompileError: While it is on, where random numbers are drawn or values are looked at.
    """

    def __init__(self, given: Iterable[Tensor]):
        super().__init__()
        self.constants: list[Tensor] = []
        self.digest = hashlib.sha256()
        self._numbers: Any = WeakIdKeyDictionary()
        self._count = 0
        for x in given:
            self._number(x)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if reason := why_not(func):
            raise CompileError(f"{reason} ({func})")
        describe = self._literal if func is torch.ops.aten.lift_fresh.default else self._described
        self.digest.update(f"{func}{pytree.tree_map(describe, (args, kwargs))}".encode())
        out = func(*args, **kwargs or {})
        pytree.tree_map_only(Tensor, self._number, out)
        return out

    def _literal(self, x: Any) -> Any:
        return x.tolist() if isinstance(x, Tensor) else x

    def _described(self, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if x not in self._numbers:
            self.constants.append(x)
            self._number(x)
        return "tensor", self._numbers[x]

    def _number(self, x: Tensor) -> None:
        self._numbers[x] = self._count
        self._count += 1
        self.digest.update(f"{tuple(x.shape)}{x.stride()}{x.dtype}{x.device}".encode())


class Reduced(NamedTuple):
    """A product or a sum, as it is met.

    Attributes:
        name: Of the operation.
        kept: Its result if it is kept; in a plan, which parts of the result are tensors. None if it is computed again.
    """

    name: str
    kept: Any


class Rules(TorchDispatchMode):
    """While a step is traced: results of costly operations are kept, small results that are broadcast are stored.

    A compiler inlines elementwise operations into the loops of whatever reads them: without this, the power in an
    average's weight, one number for each problem, is computed again for every few coordinates. `as_strided` with a
    tensor's own strides changes nothing, but its input has to exist in memory.

    Args:
        constants: Tensors that are met on the way, each with what is to be read in its place.
        plan: What to keep of the products and sums, in order; by default products and large sums.
        replay: What was kept on the way forward, to be given out where it would be computed again.

    Attributes:
        reduced: Products and sums so far.

    Raises:
        CompileError: While it is on, where the way back computes other things than the way forward.
    """

    def __init__(
        self,
        constants: Iterable[tuple[Tensor, Tensor]],
        plan: Iterable[Reduced] | None = None,
        replay: Iterator[Tensor] | None = None,
    ):
        super().__init__()
        self.reduced: list[Reduced] = []
        self._plan = None if plan is None else iter(plan)
        self._replay = replay
        self._in_place_of = {id(x): y for x, y in constants}
        self._views: Any = WeakIdKeyDictionary()  # what a view is of, and how it is made
        self._costly: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        args, kwargs = pytree.tree_map(lambda x: self._in_place_of.get(id(x), x), (args, kwargs or {}))
        inputs = [x for x in args if isinstance(x, Tensor)]
        if is_view(func):
            out = func(*args, **kwargs)
            if isinstance(out, Tensor) and out is not args[0]:
                self._views[out] = func, args, kwargs
            return out
        if is_product(func) or name in _SUMS:
            is_large = is_product(func) or _size(inputs[0].shape) >= _LARGE
            return self._reduced(name, is_large, lambda: func(*args, **kwargs))
        if not inputs:
            return func(*args, **kwargs)
        shapes = [x.shape for x in inputs]
        size = _size(_broadcast(shapes)) if is_pointwise(func) else max(map(_size, shapes))
        stored = [self._stored(x) if isinstance(x, Tensor) and self._is_small(x, size) else x for x in args]
        out = func(*stored, **kwargs)
        if isinstance(out, Tensor) and (name in _COSTLY or any(self._root(x) in self._costly for x in inputs)):
            self._costly[out] = True
        return out

    def _reduced(self, name: str, is_large: bool, compute: Callable[[], Any]) -> Any:
        planned = Reduced(name, is_large or None) if self._plan is None else next(self._plan, None)
        if planned is None or planned.name != name:
            raise CompileError(f"computes {name} on the way back, where it computed something else on the way forward")
        if self._replay is not None and planned.kept is not None:
            replay = self._replay
            return pytree.tree_map(lambda is_tensor: next(replay) if is_tensor else None, planned.kept)
        out = compute()
        self.reduced.append(Reduced(name, None if planned.kept is None else out))
        return out

    def _root(self, x: Tensor) -> Tensor:
        """What a tensor is a view of."""
        while x in self._views:
            x = self._views[x][1][0]
        return x

    def _is_small(self, x: Tensor, size: int) -> bool:
        root = self._root(x)
        return 1 < _size(root.shape) * (_RATIO_IF_COSTLY if root in self._costly else _RATIO) <= size

    def _stored(self, x: Tensor) -> Tensor:
        if x in self._views:
            func, (base, *rest), kwargs = self._views[x]
            return func(self._stored(base), *rest, **kwargs)
        if not x.is_floating_point() or not all(isinstance(n, int) for n in x.shape) or not x.is_contiguous():
            return x
        return torch.ops.aten.as_strided.default(x, list(x.shape), list(x.stride()))


def _size(shape: Iterable[Any]) -> int:
    return math.prod(map(_number, shape))


def _broadcast(shapes: list[Any]) -> Iterator[int]:
    for sides in itertools.zip_longest(*map(reversed, shapes), fillvalue=1):
        yield max(map(_number, sides))


def _number(n: Any) -> int:
    return n if isinstance(n, int) else _MANY  # asking for the number of a symbol would make it that number
