"""Inner steps as functions of tensors alone, and which of them are the same function."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.func import grad

from ph_l2o.compilation.closure import Closure
from ph_l2o.compilation.graphs import timed
from ph_l2o.errors import CompileError
from ph_l2o.inner import Carry
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.params import Params
from ph_l2o.tasks.task import Buffers, Problem

log = logging.getLogger(__name__)

_MANY = 16  # kinds of problems of one run, after which it is worth saying so
Compiled = TypeVar("Compiled")


class Pieces(NamedTuple):
    """A carry as lists of tensors.

    Attributes:
        smooth: Parameters and the state's floating-point tensors, which derivatives pass; its numbers for each problem
            are the rows of one tensor, since each input and output of compiled code costs about a microsecond.
        rest: The state's other tensors, then buffers.
    """

    smooth: list[Tensor]
    rest: list[Tensor]


class Structure:
    """How a carry is put together, to take it apart and put it together again."""

    def __init__(self, carry: Carry):
        leaves, self.spec = pytree.tree_flatten(carry.state)
        flat = carry.params.flat
        rest = [k for k, x in enumerate(leaves) if not x.is_floating_point()]
        numbers = [k for k, x in enumerate(leaves) if x.shape == flat.shape[:-1] and x.dtype == flat.dtype]
        self._numbers = numbers if len(numbers) > 1 else []
        others = [k for k in range(len(leaves)) if k not in (*rest, *self._numbers)]
        self._leaves = [*others, *self._numbers, *rest]  # in the order in which they lie in the pieces
        self._num_others = len(others)
        self.buffers = tuple(carry.buffers)
        self.layout = carry.params.layout

    @property
    def packs_numbers(self) -> bool:
        """Whether the last of the smooth pieces has the numbers for each problem as its rows."""
        return bool(self._numbers)

    def apart(self, carry: Carry) -> Pieces:
        """The carry's tensors."""
        leaves = pytree.tree_leaves(carry.state)
        ordered = [leaves[k] for k in self._leaves]
        end = self._num_others + len(self._numbers)
        others, numbers, rest = ordered[: self._num_others], ordered[self._num_others : end], ordered[end:]
        packed = [torch.stack(numbers)] if numbers else []
        return Pieces([carry.params.flat, *others, *packed], [*rest, *carry.buffers.values()])

    def together(self, pieces: Pieces) -> Carry:
        """The carry of these tensors."""
        flat, *smooth = pieces.smooth
        packed = smooth.pop().unbind() if self._numbers else ()
        num_rest = len(self._leaves) - len(smooth) - len(packed)
        leaves = dict(zip(self._leaves, [*smooth, *packed, *pieces.rest[:num_rest]], strict=True))
        state = pytree.tree_unflatten([leaves[k] for k in range(len(leaves))], self.spec)
        buffers = dict(zip(self.buffers, pieces.rest[num_rest:], strict=True))
        return Carry(Params(flat, self.layout), state, buffers)


class Step(NamedTuple):
    """What an inner step takes beside meta-parameters and a carry, and how to find its way.

    Attributes:
        optimizer: The learned optimizer.
        problem: The optimizees.
        closure: What tensors these hold.
        structure: Of the carry.
        batch: How a batch is put together; None where there is none.
    """

    optimizer: LearnedOptimizer
    problem: Problem
    closure: Closure
    structure: Structure
    batch: Any

    def given(self, constants: list[Tensor]) -> tuple[list[Tensor], Problem, Any]:
        """The carry's rest, the problem and the batch from tensors in this order."""
        num_held, num_drawn = len(self.closure.tensors), 0 if self.batch is None else self.batch.num_leaves
        end = len(constants) - num_drawn
        rest, held, drawn = constants[: end - num_held], constants[end - num_held : end], constants[end:]
        problem = self.closure.rebuilt(held) if held else self.problem
        return rest, problem, None if self.batch is None else pytree.tree_unflatten(drawn, self.batch)


class Kinds(Generic[Compiled]):
    """What is compiled, one of each kind.

    Attributes:
        known: What there is, by its kind.
    """

    def __init__(self) -> None:
        self.known: dict[Hashable, Compiled] = {}

    def get(self, kind: Hashable, name: str, make: Callable[[], Compiled]) -> Compiled:
        """The one of a kind, made the first time.

        Raises:
            CompileError: If it cannot be made.
        """
        if kind not in self.known:
            with timed(name):
                self.known[kind] = make()
            if len(self.known) == _MANY:
                log.warning("%d kinds of problems so far, each compiled by itself; compile=false may be faster", _MANY)
        return self.known[kind]


class StepKinds(Kinds[Compiled]):
    """Compiled inner steps.

    Args:
        compile: Compiles a step, from examples of the meta-parameters, of the carry and of the other tensors.
    """

    def __init__(self, compile: Callable[[Step, Mapping[str, Tensor], Pieces, list[Tensor]], Compiled]):
        super().__init__()
        self._compile = compile
        self._closure: tuple[Problem, Closure] | None = None

    def closure(self, problem: Problem) -> Closure:
        """What tensors the problem holds."""
        if self._closure is None or self._closure[0] is not problem:
            self._closure = problem, Closure(problem)
        return self._closure[1]

    def of(
        self,
        optimizer: LearnedOptimizer,
        phi: Mapping[str, Tensor],
        problem: Problem,
        structure: Structure,
        pieces: Pieces,
        batch: Any,
    ) -> Compiled:
        """The compiled form for these and all that differ from them in values alone.

        Raises:
            CompileError: If there is none.
        """
        closure = self.closure(problem)
        drawn, spec = ([], None) if batch is None else pytree.tree_flatten(batch)
        kind = (
            id(optimizer), closure.kind, structure.layout, str(spec), tuple(phi),
            shapes([*phi.values(), *pieces.smooth, *pieces.rest, *drawn]),
        )  # fmt: skip
        step = Step(optimizer, problem, closure, structure, spec)
        name = f"{type(optimizer).__name__}'s step on {type(problem).__name__}, {structure.layout.numel} coordinates"
        others = [*closure.tensors, *drawn]
        return self.get(kind, name, lambda: self._compile(step, phi, pieces, others))


def shapes(tensors: Iterable[Tensor]) -> Hashable:
    """Shapes, types and devices."""
    return tuple((tuple(x.shape), x.dtype, x.device) for x in tensors)


def traced_value_and_gradient(
    problem: Problem, params: Params, buffers: Buffers, batch: Any
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Losses, their gradients and the next buffers, as `value_and_gradient` in a form that `make_fx` can trace."""

    def total(theta: Tensor) -> tuple[Tensor, tuple[Tensor, dict[str, Tensor]]]:
        loss, after = problem.loss(params.like(theta), buffers, batch)
        return loss.sum(), (loss, dict(after))

    gradient, (loss, after) = grad(total, has_aux=True)(params.flat)
    return loss, gradient, after


def drawn_tensors(batch: Any) -> list[Tensor]:
    """The tensors of a batch.

    Raises:
        CompileError: If there are other things in it.
    """
    leaves = [] if batch is None else pytree.tree_leaves(batch)
    if not all(isinstance(x, torch.Tensor) for x in leaves):
        raise CompileError("draws random numbers inside its modules, such as dropout's")
    return leaves
