"""What the forward part keeps for the backward part, without views and copies of what the caller has anyway."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import fx

from ph_l2o.compilation.barriers import is_view


class Residuals(NamedTuple):
    """Where the backward part finds what it needs.

    Attributes:
        inputs: Positions among the forward part's inputs.
        num_kept: Number of further outputs of the forward part.
    """

    inputs: list[int]
    num_kept: int


def keep_bases(forward: fx.GraphModule, backward: fx.GraphModule, num_forward: int) -> Residuals:
    """Keep what views are of in place of views, each once, and no input.

    An output that is a view costs more than its computation: it has to be made anew after each call. Afterwards the
    forward part returns its `num_forward` outputs and what is kept, and the backward part takes inputs of the forward
    part, what is kept, and cotangents, in this order.
    """
    output = next(n for n in forward.graph.nodes if n.op == "output")
    positions = {n: k for k, n in enumerate(n for n in forward.graph.nodes if n.op == "placeholder")}
    results, saved = output.args[0][:num_forward], output.args[0][num_forward:]
    taken: dict[fx.Node, fx.Node] = {}  # base in the forward part → placeholder in the backward part
    placeholders = [n for n in backward.graph.nodes if n.op == "placeholder"]
    end = placeholders[-1]
    for node, placeholder in zip(saved, placeholders, strict=False):
        chain = _chain(node)
        base = chain[-1].args[0] if chain else node
        assert isinstance(base, fx.Node)
        if base not in taken:
            with backward.graph.inserting_before(placeholders[0]):
                taken[base] = backward.graph.placeholder(f"kept_{len(taken)}")
            taken[base].meta.update(base.meta)
        value = taken[base]
        for link in reversed(chain):
            with backward.graph.inserting_after(value if value.op != "placeholder" else end):
                value = backward.graph.call_function(link.target, (value, *link.args[1:]), dict(link.kwargs))  # type: ignore[arg-type]
            value.meta.update(link.meta)
        placeholder.replace_all_uses_with(value)
        backward.graph.erase_node(placeholder)
    inputs = [n for n in taken if n.op == "placeholder"]
    kept = [n for n in taken if n.op != "placeholder"]
    _reorder(backward.graph, [taken[n] for n in (*inputs, *kept)])
    output.args = ([*results, *kept],)
    for module in (forward, backward):
        module.graph.eliminate_dead_code()
        module.recompile()
    return Residuals([positions[n] for n in inputs], len(kept))


def drop_sizes(forward: fx.GraphModule, backward: fx.GraphModule) -> None:
    """Where sizes are symbols, take those that the backward part needs from its tensors, not as further numbers."""
    placeholders = [n for n in backward.graph.nodes if n.op == "placeholder"]
    for node in placeholders:
        size = node.meta["val"]
        if not isinstance(size, torch.SymInt):
            continue
        if size.node.expr.is_number:
            _put_number(node, int(str(size.node.expr)))
            continue
        of, axis = _axis_of(size, placeholders)
        with backward.graph.inserting_after(placeholders[-1]):
            found = backward.graph.call_function(torch.ops.aten.sym_size.int, (of, axis))
        found.meta["val"] = size
        node.replace_all_uses_with(found)
        backward.graph.erase_node(node)
    output = next(n for n in forward.graph.nodes if n.op == "output")
    output.args = ([n for n in output.args[0] if not isinstance(n.meta["val"], torch.SymInt)],)
    for module in (forward, backward):
        module.graph.eliminate_dead_code()
        module.recompile()


def _put_number(node: fx.Node, number: int) -> None:
    """A size that turned out to be the same for all."""

    def put(n: fx.Node) -> fx.Node | int:
        return number if n is node else n

    for user in list(node.users):
        user.args, user.kwargs = fx.map_arg(user.args, put), fx.map_arg(user.kwargs, put)
    node.graph.erase_node(node)


def _axis_of(size: torch.SymInt, placeholders: list[fx.Node]) -> tuple[fx.Node, int]:
    for node in placeholders:
        value = node.meta["val"]
        if isinstance(value, torch.Tensor):
            for axis, other in enumerate(value.shape):
                if isinstance(other, torch.SymInt) and other.node.expr == size.node.expr:
                    return node, axis
    raise NotImplementedError(f"no tensor has a side of {size}")


def _chain(node: fx.Node) -> list[fx.Node]:
    """The views that lead to a node, last first; their other arguments are constants."""
    chain: list[fx.Node] = []
    while is_view(node) and isinstance(node.args[0], fx.Node) and len(node.all_input_nodes) == 1:
        chain.append(node)
        node = node.args[0]
    while chain and not isinstance(node.meta["val"], torch.Tensor):  # parts of a split can be kept, not all at once
        node = chain.pop()
    return chain


def _reorder(graph: fx.Graph, placeholders: list[fx.Node]) -> None:
    for node in reversed(placeholders):
        next(iter(graph.nodes)).prepend(node)
