"""The interface that learned and classical optimizers share."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from ph_l2o import recipes
from ph_l2o.params import Params

State = TypeVar("State", bound=tuple[Any, ...])


class LearnedOptimizer(nn.Module, ABC):
    """An optimizer whose meta-parameters φ are the parameters of this module.

    `init` and `update` are pure: what an optimizer remembers lies in the state (a NamedTuple of tensors with
    leading problem axis B), nothing in `self`, and no input is changed in place. `update` has static shapes, no
    Python branching on data, and a step counter that is a tensor, so the same code runs eagerly, compiled, under
    vmap, and in first or second order.

    Attributes:
        needs_loss: Whether `update` uses the loss; otherwise it may be None.
        takes_padding: Whether coordinates that are no part of any tensor, with parameters and gradients 0, change
            nothing elsewhere, so that one compiled `update` serves all architectures. Tensors of the state must have
            their coordinates last; `layout` is for sums over tensors, and says nothing else but `layout.table`.
        reads_out: Whether `readout` gives other parameters than those at which gradients are taken.
        phi_by_problem: Whether `update` takes meta-parameters with the problems' axis in front, `(B, *shape)`, any of
            them: then each problem has its own. It is not inherited.
        compiles_well: Whether a compiled update is faster than an eager one, so that `compile=auto` may compile it.
        recipe: Class and constructor arguments as a configuration node; empty if they are not plain values.
    """

    needs_loss: ClassVar[bool] = False
    takes_padding: ClassVar[bool] = False
    reads_out: ClassVar[bool] = False
    phi_by_problem: ClassVar[bool] = False
    compiles_well: ClassVar[bool] = True
    recipe: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Record the constructor's arguments, so that a checkpoint can rebuild what it holds; make the class known."""
        super().__init_subclass__(**kwargs)
        construct = cls.__init__

        @functools.wraps(construct)
        def recorded(self: Any, *args: Any, **kwargs: Any) -> None:
            construct(self, *args, **kwargs)
            if type(self) is cls:
                self.recipe = recipes.recipe(cls, inspect.signature(construct).bind(self, *args, **kwargs))

        cls.__init__ = recorded  # type: ignore[method-assign]
        recipes.register(cls)

    @abstractmethod
    def init(self, params: Params) -> Any:
        """State before the first step, for parameters `(B, N)`."""

    @abstractmethod
    def update(self, params: Params, grads: Params, loss: Tensor | None, state: Any) -> tuple[Params, Any]:
        """One inner step.

        Args:
            params: Parameters θ, flat shape `(B, N)`.
            grads: Gradients of the losses at `params`, the same layout.
            loss: Losses at `params`, shape `(B,)`, or None if unknown.
            state: What `init` or the last `update` returned.

        Returns:
            The next parameters and the next state.
        """

    def hide_loss(self, state: Any, hidden: Tensor) -> Any:
        """The state of a new episode in which some problems' losses are never used, for an optimizer that can do so.

        Args:
            state: What `init` returned.
            hidden: Which problems, booleans `(B,)`.

        Raises:
            ValueError: If the optimizer has no such mode.
        """
        del state, hidden
        raise ValueError(f"meta.hide_loss: {type(self).__name__} cannot go without the loss it sees; set it to 0")

    def readout(self, params: Params, state: Any) -> Params:
        """The parameters to be used if the training ended now, by which losses are judged: for most, these.

        One that averages its iterates has `reads_out` too.
        """
        del state
        return params

    def tell_steps(self, state: Any, total_steps: Tensor) -> Any:
        """The state of a new episode whose length the optimizer knows, for one that has a schedule of its own.

        Args:
            state: What `init` returned.
            total_steps: Steps of each problem, `(B,)`; 0 where they are not known.

        Raises:
            ValueError: If the optimizer has no schedule.
        """
        del state, total_steps
        raise ValueError(f"meta.tell_steps: {type(self).__name__} has no schedule of its own; set it to false")

    def diagnose(self, params: Params, grads: Params, loss: Tensor | None, state: Any) -> dict[str, Tensor]:
        """What the optimizer is about to do, to look inside: numbers `(B,)`, or `(B, T)` with one for each tensor.

        Arguments are those of `update`. Empty for an optimizer that has nothing to show.
        """
        del params, grads, loss, state
        return {}

    def forward(self, params: Params, grads: Params, loss: Tensor | None, state: Any) -> tuple[Params, Any]:
        """The same as `update`, so that `torch.func.functional_call` can swap the meta-parameters."""
        return self.update(params, grads, loss, state)


def map_state(fn: Callable[[Tensor], Tensor], state: State) -> State:
    """Apply `fn` to every tensor of a state: a NamedTuple of tensors and of further such NamedTuples."""
    return type(state)(*(map_state(fn, x) if isinstance(x, tuple) else fn(x) for x in state))
