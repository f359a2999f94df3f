"""The state of a `LearnedOptimizer`, cut by parameter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer, map_state
from ph_l2o.params import Layout, Params

_PROBE = ((2, 3), (2,), (1,), (1, 1))  # of these shapes, what a state has of some tensors is nowhere empty


class CutState:
    """How the state of an optimizer falls into parts that belong to parameters, and numbers that belong to none.

    What grows with the number of tensors is cut along the axis in which it grows, in the order of the tensors. The rest
    is kept with each parameter, as one object.

    Args:
        learned: The optimizer, whose `init` is tried on a few small tensors.

    Attributes:
        axes: By name of each tensor of the state, the axis along which it is cut, or None.
    """

    def __init__(self, learned: LearnedOptimizer):
        self._learned = learned
        self._once, twice = (learned.init(_zeros(_PROBE * n, "cpu")) for n in (1, 2))
        pairs = zip(_by_name(self._once).items(), _by_name(twice).values(), strict=True)
        self.axes = {name: _growing(one.shape, two.shape) for (name, one), two in pairs}
        self._shapes = dict[tuple[int, ...], dict[str, tuple[int, ...] | None]]()

    def shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...] | None]:
        """Of a parameter's part, by name."""
        if shape not in self._shapes:
            try:
                state = self._learned.init(_zeros((shape,), "meta"))
            except (RuntimeError, NotImplementedError):  # an `init` that looks at numbers
                state = self._learned.init(_zeros((shape,), "cpu"))
            self._shapes[shape] = {name: tuple(x.shape) for name, x in _by_name(state).items()}
        return self._shapes[shape]

    def joined(self, params: Params, known: Mapping[str, Mapping[str, Any]]) -> Any:
        """The state before a step of these parameters.

        Args:
            params: The parameters.
            known: What is remembered of parameters, by their name. One that is not there begins with what `init` gives.

        Raises:
            ValueError: If what is remembered does not fit a parameter.
        """
        if not known:
            return self._learned.init(params)
        parts = list[Mapping[str, Tensor]]()
        for (name, shape), x in zip(_tensors(params.layout), params.tensors().values(), strict=True):
            if name in known:
                for key, needed in self.shapes(shape).items():
                    if tuple(known[name][key].shape) != needed:
                        raise ValueError(
                            f"parameter {name} has shape {shape} now, and what is remembered of it is of another, "
                            f"{key} of {tuple(known[name][key].shape)}: delete it, del optimizer.state[p]"
                        )
                parts.append(known[name])
            else:
                alone = Params(x.reshape(1, -1), Layout((name,), (shape,)))
                parts.append(_by_name(self._learned.init(alone)))
        of_all = next(iter(known.values()))
        leaves = iter(
            of_all[key] if axis is None else torch.cat([part[key].to(params.flat) for part in parts], axis)
            for key, axis in self.axes.items()
        )
        return map_state(lambda _: next(leaves).to(params.flat), self._once)

    def parts(self, layout: Layout, state: Any, known: Iterable[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """A state after a step of these parameters, by parameter; what belongs to none goes to all that are known."""
        found: list[dict[str, Tensor]] = [{} for _ in layout.shapes]
        for (key, x), axis in zip(_by_name(state).items(), self.axes.values(), strict=True):
            if axis is None:
                parts = [x] * len(found)
                for memory in known:
                    memory[key] = x
            else:
                sizes = [(self.shapes(shape)[key] or ())[axis] for shape in layout.shapes]
                parts = [part.clone() for part in x.split(sizes, axis)]  # so that each can be freed by itself
            for memory, part in zip(found, parts, strict=True):
                memory[key] = part
        return found


def _tensors(layout: Layout) -> list[tuple[str, tuple[int, ...]]]:
    return list(zip(layout.names, layout.shapes, strict=True))


def _zeros(shapes: tuple[tuple[int, ...], ...], device: str) -> Params:
    layout = Layout(tuple(map(str, range(len(shapes)))), shapes)
    return Params(torch.zeros(1, layout.numel, dtype=torch.float32, device=device), layout)


def _growing(one: torch.Size, two: torch.Size) -> int | None:
    return next((axis for axis, (n, m) in enumerate(zip(one, two, strict=True)) if n != m), None)


def _by_name(state: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a state by the names of its fields, or their numbers."""
    found: dict[str, Tensor] = {}
    for name, x in zip(getattr(state, "_fields", map(str, range(len(state)))), state, strict=True):
        found |= _by_name(x, f"{prefix}{name}_") if isinstance(x, tuple) else {prefix + name: x}
    return found
