"""What one inner step leaves to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer, map_state
from ph_l2o.params import Params
from ph_l2o.tasks.task import Buffers, Problem


class Carry(NamedTuple):
    """What one inner step leaves to the next.

    Attributes:
        params: Parameters of the optimizees, flat shape `(B, N)`.
        state: State of the optimizer.
        buffers: Buffers of the optimizees.
    """

    params: Params
    state: Any
    buffers: Buffers

    def map(self, fn: Callable[[Tensor], Tensor]) -> Carry:
        """The carry with `fn` applied to each of its tensors."""
        buffers = {name: fn(b) for name, b in self.buffers.items()}
        return Carry(self.params.like(fn(self.params.flat)), map_state(fn, self.state), buffers)

    def detach(self) -> Carry:
        """The same carry, cut from the graph."""
        return self.map(Tensor.detach)

    def tensors(self) -> list[Tensor]:
        """Its tensors in a fixed order: parameters, state, buffers."""
        return [self.params.flat, *state_tensors(self.state), *self.buffers.values()]


def state_tensors(state: tuple[Any, ...]) -> list[Tensor]:
    """All tensors of a state, in order."""
    found: list[Tensor] = []
    map_state(lambda x: found.append(x) or x, state)
    return found


def start(optimizer: LearnedOptimizer, problem: Problem) -> Carry:
    """The carry at the start of an episode."""
    state = optimizer.init(problem.params)
    if problem.hidden is not None:
        state = optimizer.hide_loss(state, problem.hidden)
    if problem.total_steps is not None:
        state = optimizer.tell_steps(state, problem.total_steps)
    return Carry(problem.params, state, problem.buffers)
