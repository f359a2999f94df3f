"""Modes of a learned optimizer, which follow its name as suffixes: `port_hamiltonian+total_steps+no_loss`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ph_l2o.checks import nearest
from ph_l2o.optimizers.averaged import Averaged
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.params import Params

Mode = Callable[[LearnedOptimizer, int], LearnedOptimizer]  # from an optimizer and the horizon to one for this run


class WithoutLoss(LearnedOptimizer):
    """An optimizer that is never given the loss.

    Args:
        optimizer: One that can do without.
    """

    def __init__(self, optimizer: LearnedOptimizer):
        super().__init__()
        self.optimizer = optimizer
        self.takes_padding, self.compiles_well = optimizer.takes_padding, optimizer.compiles_well  # type: ignore[misc]
        self.reads_out = optimizer.reads_out  # type: ignore[misc]

    def init(self, params: Params) -> Any:
        return self.optimizer.init(params)

    def update(self, params: Params, grads: Params, loss: Tensor | None, state: Any) -> tuple[Params, Any]:
        return self.optimizer.update(params, grads, None, state)

    def readout(self, params: Params, state: Any) -> Params:
        return self.optimizer.readout(params, state)


def _over_the_run(optimizer: LearnedOptimizer, horizon: int) -> LearnedOptimizer:
    if not hasattr(optimizer, "total_steps"):
        raise ValueError(f"{type(optimizer).__name__} has no total_steps")
    made: Any = copy.deepcopy(optimizer)
    made.total_steps = horizon
    return made


def _without_loss(optimizer: LearnedOptimizer, horizon: int) -> LearnedOptimizer:
    del horizon
    if optimizer.needs_loss:
        raise ValueError(f"{type(optimizer).__name__} cannot go without the loss")
    return WithoutLoss(optimizer)


def _averaged(optimizer: LearnedOptimizer, horizon: int) -> LearnedOptimizer:
    del horizon
    return Averaged(optimizer)


# By suffix, in the order in which they apply, whatever the order of the suffixes. A further one is a line here.
MODES: dict[str, Mode] = {
    "total_steps": _over_the_run,  # warm-up and a linear fall over the run: `total_steps` is its horizon
    "no_loss": _without_loss,
    "average": _averaged,  # judged at the average of its iterates
}


@dataclass(frozen=True, eq=False)
class InMode:
    """A learned optimizer in modes that can depend on the horizon.

    Args:
        optimizer: The optimizer, which stays as it is.
        modes: Names in `MODES`.

    Raises:
        ValueError: If a mode is unknown, or not one of this optimizer's.
    """

    optimizer: LearnedOptimizer
    modes: tuple[str, ...]

    def __post_init__(self) -> None:
        self.at(1)

    def at(self, horizon: int) -> LearnedOptimizer:
        """The optimizer for a run of `horizon` inner steps."""
        for name in self.modes:
            if name not in MODES:
                raise ValueError(f"+{name}: no mode has this name; {nearest(name, MODES)}")
        made = self.optimizer
        for name in sorted(self.modes, key=list(MODES).index):
            try:
                made = MODES[name](made, horizon)
            except ValueError as error:
                raise ValueError(f"+{name}: {error}") from None
        return made
