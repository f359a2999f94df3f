"""Small intermediate results that a compiled loop over coordinates must not compute again for each coordinate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

# Whoever is at least so many times larger than what it reads would recompute it too often.
_RATIO, _RATIO_IF_COSTLY = 64, 2
_MANY = 1000
_COSTLY = frozenset(["acos", "atan", "cos", "erf", "exp", "expm1", "log", "log1p", "pow", "sigmoid", "sin", "tanh"])
_STORED = frozenset(
    ["addmm", "amax", "amin", "as_strided", "baddbmm", "bmm", "cat", "convolution", "mean", "mm", "sum"]
)
_VIEWS = frozenset(
    ["alias", "detach", "expand", "getitem", "permute", "select", "slice", "split", "split_with_sizes", "squeeze"]
) | {"t", "transpose", "unbind", "unsqueeze", "unsafe_view", "_unsafe_view", "view"}


def insert_barriers(graph: fx.GraphModule) -> int:
    """Make the compiler store what is small and is broadcast to something much larger.

    Inductor inlines an elementwise producer into the loops of its consumers: without this, the power in an average's
    weight, one number for each problem, is computed again for every few coordinates. `as_strided` with the tensor's own
    strides changes nothing, but its input has to exist in memory.

    Returns:
        The number of barriers.
    """
    inserted, costly = 0, set[fx.Node]()
    for node in list(graph.graph.nodes):
        if node.op != "call_function":
            continue
        if _name(node) in _COSTLY or (_name(node) not in _STORED and not costly.isdisjoint(node.all_input_nodes)):
            costly.add(node)
        value = _value(node)
        if is_view(node) or value is None or not value.dtype.is_floating_point or _is_symbolic(value):
            continue
        if not _is_broadcast(node, (_RATIO_IF_COSTLY if node in costly else _RATIO) * _size(value)):
            continue
        with graph.graph.inserting_after(node):
            barrier = graph.graph.call_function(
                torch.ops.aten.as_strided.default, (node, list(value.shape), list(value.stride()))
            )
        barrier.meta["val"] = value
        node.replace_all_uses_with(barrier, delete_user_cb=lambda user, barrier=barrier: user is not barrier)
        inserted += 1
    graph.recompile()
    return inserted


def is_view(node: fx.Node) -> bool:
    """Whether a node only looks at its input in another way."""
    return node.op == "call_function" and _name(node) in _VIEWS


def _is_broadcast(node: fx.Node, least: int) -> bool:
    """Whether a result of at least that size is computed from the node or a view of it."""
    for user in node.users:
        if user.op != "call_function":
            continue
        if is_view(user):
            if _is_broadcast(user, least):
                return True
        else:
            value = _value(user)
            if value is not None and _size(value) >= least:
                return True
    return False


def _value(node: fx.Node) -> torch.Tensor | None:
    value = node.meta.get("val")
    return value if isinstance(value, torch.Tensor) else None


def _size(value: torch.Tensor) -> int:
    # A symbol stands for many coordinates or tensors; asking for its number would make it that number.
    return math.prod(_MANY if isinstance(n, torch.SymInt) else n for n in value.shape)


def _is_symbolic(value: torch.Tensor) -> bool:
    return any(isinstance(n, torch.SymInt) for n in (*value.shape, *value.stride()))


def _name(node: fx.Node) -> str:
    target: Any = node.target
    packet = getattr(target, "_overloadpacket", target)
    return getattr(packet, "__name__", str(packet))
