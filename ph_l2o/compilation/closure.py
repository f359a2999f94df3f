"""The tensors in a problem, so that one compiled step serves all problems of a kind.

A problem's loss reads tensors from the problem: its matrix, its masks, its data. A graph must take them as inputs, or
it would keep those of the problem it was traced with. `Closure` finds them in the problem's attributes, and puts others
in their place in a copy.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ph_l2o.keys import ProblemKeys
from ph_l2o.params import Params
from ph_l2o.tasks.task import Task

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_Build = Callable[[Iterator[Tensor]], Any]


class Closure:
    """What an object holds.

    Tasks and keys count as what they are, not as what is in them; the parameters and buffers of modules are left out,
    since a functional call replaces them.

    Args:
        source: The object.

    Attributes:
        tensors: Every tensor in it, each once.
        kind: Hashable; equal for objects that differ in the values of their tensors alone.
    """

    def __init__(self, source: Any):
        self.tensors: list[Tensor] = []
        self._source = source
        self._seen: dict[int, tuple[int, Any]] = {}
        self.kind, self._build = self._walk(source)

    def rebuilt(self, tensors: list[Tensor]) -> Any:
        """A copy of the object that holds other tensors."""
        return self._source if self._build is None else self._build(iter(tensors))

    def _walk(self, value: Any) -> tuple[Hashable, _Build | None]:
        """The value's kind, and how to build it from tensors; None where there are none in it."""
        if isinstance(value, _PLAIN):
            return (type(value), value), None
        if id(value) in self._seen:
            return ("again", self._seen[id(value)][0]), None
        self._seen[id(value)] = len(self._seen), value
        if isinstance(value, Tensor):
            self.tensors.append(value)
            return ("tensor", tuple(value.shape), value.stride(), value.dtype, value.device), next
        if isinstance(value, ProblemKeys):
            return ("keys",), None
        if isinstance(value, Task | type | functools.partial) or inspect.isroutine(value):
            return ("same", Same(value)), None
        if isinstance(value, Params):
            kind, _ = self._walk(value.flat)
            return ("params", value.layout, kind), lambda tensors: Params(next(tensors), value.layout)
        if isinstance(value, list | tuple):
            return self._sequence(value)
        if isinstance(value, dict):
            return self._mapping(value)
        if isinstance(value, set | frozenset) and all(isinstance(x, _PLAIN) for x in value):
            return (type(value), frozenset(value)), None
        if hasattr(value, "__dict__"):
            return self._object(value)
        return ("same", Same(value)), None

    def _sequence(self, value: list[Any] | tuple[Any, ...]) -> tuple[Hashable, _Build | None]:
        kinds, builds = zip(*map(self._walk, value), strict=True) if value else ((), ())
        if not any(builds):
            return (type(value), kinds), None

        def build(tensors: Iterator[Tensor]) -> Any:
            parts = [old if b is None else b(tensors) for old, b in zip(value, builds, strict=True)]
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)

        return (type(value), kinds), build

    def _mapping(self, value: dict[Any, Any]) -> tuple[Hashable, _Build | None]:
        kind, build = self._sequence(list(value.values()))
        made = None if build is None else lambda tensors: dict(zip(value, build(tensors), strict=True))
        return ("dict", tuple(map(str, value)), kind), made

    def _object(self, value: Any) -> tuple[Hashable, _Build | None]:
        left_out = {"_parameters", "_buffers"} if isinstance(value, nn.Module) else set()
        attributes = {k: v for k, v in vars(value).items() if k not in left_out}
        kind, build = self._mapping(attributes)
        if build is None:
            return (type(value), kind), None

        def built(tensors: Iterator[Tensor]) -> Any:
            new = copy.copy(value)
            new.__dict__.update(build(tensors))
            return new

        return (type(value), kind), built


class Same:
    """Equal to itself alone; keeps what it stands for alive, so that its identity is not given away."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)
