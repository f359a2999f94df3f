"""Learning-rate schedules, for any optimizer whose step is proportional to its learning rate.

A schedule is a function from progress, in [0, 1], to a factor; `register_schedule` makes one known by name.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from ph_l2o.checks import at_least, nearest
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.params import Params

WARM_UP = 0.05  # share of the horizon
BEST = "best"  # among baselines, the best of several schedules; so no schedule can have this name

Shape = Callable[[Tensor], Tensor]


class Schedule(NamedTuple):
    """What the learning rate does over an episode.

    Attributes:
        shape: From progress after the warm-up, in [0, 1], to a factor, element by element.
        warm_up: Share of the horizon in which the factor first rises, in [0, 1), where nothing else is asked for.
    """

    shape: Shape
    warm_up: float


SCHEDULES: dict[str, Schedule] = {}


def register_schedule(name: str, shape: Shape, *, warm_up: float = WARM_UP) -> None:
    """Make a schedule known, so that `adamw+<name>` is a baseline.

    Args:
        name: Without "+".
        shape: From progress after the warm-up, a tensor in [0, 1], to a factor, element by element.
        warm_up: Share of the horizon in which the factor first rises linearly, in [0, 1).

    Raises:
        ValueError: If the name is that of another schedule, or an argument is out of range.

    Example:
        >>> register_schedule("square_root", lambda progress: (1 - progress).sqrt())
    """
    known = SCHEDULES.get(name)
    if "+" in name or name == BEST or (known is not None and known.shape.__module__ != shape.__module__):
        raise ValueError(f"schedule={name}: is taken, or has a +; choose another name")
    SCHEDULES[name] = Schedule(shape, _share("schedule.warm_up", warm_up))


def _share(name: str, value: float) -> float:
    if not 0 <= value < 1:
        raise ValueError(f"{name}={value}: must be in [0, 1) (share of the horizon)")
    return value


def _constant(progress: Tensor) -> Tensor:
    return torch.ones_like(progress)


def _cosine(progress: Tensor) -> Tensor:
    return (1 + (math.pi * progress).cos()) / 2


def _linear(progress: Tensor) -> Tensor:
    return 1 - progress


register_schedule("constant", _constant, warm_up=0)
register_schedule("cosine", _cosine)
register_schedule("linear", _linear)


class ScheduledState(NamedTuple):
    """What an optimizer under a schedule remembers.

    Attributes:
        step: Steps done, `(B,)`.
        inner: The optimizer's own state.
    """

    step: Tensor
    inner: Any


class Scheduled(LearnedOptimizer):
    """An optimizer whose step is scaled: θ ← θ + f(k) (θ' - θ) in step k = 0 … T - 1, if θ' is where it would go.

    For all classical optimizers here and in torch.optim this is their rule with the learning rate f(k) lr, decoupled
    weight decay included; one for which it is not has `update_at`, which takes f(k), `(B, 1)`, and the arguments of
    `update`. With W = round(warm_up T) steps of warm-up, f(k) = (k + 1) / (W + 1) for k < W, and after it
    f(k) = final + (1 - final) shape((k - W) / (T - W)). So it is torch's `LinearLR` from 1 / (W + 1), followed by
    `CosineAnnealingLR` or `LinearLR` over T - W steps. After T steps it stays as it is at the end.

    Args:
        optimizer: What is scaled.
        schedule: A name in `SCHEDULES`; or several, of which the hyperparameter `schedule`, a number in this order,
            chooses one, for each problem another one if need be.
        horizon: T, >= 1.
        warm_up: Share of the horizon, in [0, 1); None: the schedule's own, .05, but 0 for `constant`.
        final: f at the end, in [0, 1].

    Raises:
        ValueError: If an argument is out of range.
    """

    optimizer: Any
    number: Tensor
    factors: Tensor

    def __init__(
        self,
        optimizer: LearnedOptimizer,
        schedule: str | Sequence[str] = "cosine",
        *,
        horizon: int,
        warm_up: float | None = None,
        final: float = 0.0,
    ):
        super().__init__()
        names = (schedule,) if isinstance(schedule, str) else tuple(schedule)
        for name in names or ("",):
            if name not in SCHEDULES:
                raise ValueError(f"optimizer.schedule={name}: no schedule has this name; {nearest(name, SCHEDULES)}")
        if optimizer.reads_out and not hasattr(optimizer, "update_at"):
            raise ValueError(
                f"optimizer.optimizer={type(optimizer).__name__}: averages its steps as they are; put the schedule "
                "inside, Averaged(Scheduled(…))"
            )
        if not 0 <= final <= 1:
            raise ValueError(f"optimizer.final={final}: must be in [0, 1]")
        self.optimizer, self.schedules, self.final = optimizer, names, final
        self.horizon = at_least("optimizer.horizon", horizon, 1, "inner steps")
        self.warm_up = None if warm_up is None else _share("optimizer.warm_up", warm_up)
        self.needs_loss, self.takes_padding = optimizer.needs_loss, optimizer.takes_padding  # type: ignore[misc]
        self.compiles_well, self.reads_out = optimizer.compiles_well, optimizer.reads_out  # type: ignore[misc]
        self.register_buffer("number", torch.zeros(()))
        steps = torch.arange(self.horizon + 1, dtype=torch.float64)
        factors = torch.stack([self._factor(name, steps) for name in names])
        self.register_buffer("factors", factors.view(torch.int64))  # as bits: a change of the type rounds nothing

    @property
    def schedule(self) -> str:
        """The chosen one, where it is the same for all problems."""
        return self.schedules[int(self.number)]

    @property
    def grid(self) -> dict[str, tuple[float, ...]]:
        """Values to try when the optimizer is tuned; if there are several schedules, their numbers too."""
        return {**self._several(tuple(map(float, range(len(self.schedules))))), **self.optimizer.grid}

    @property
    def hyperparameters(self) -> dict[str, Tensor]:
        """Of the optimizer; if there are several schedules, the number of the chosen one too."""
        return {**self._several(self.number), **self.optimizer.hyperparameters}

    def with_hyperparameters(self, **values: float | Tensor) -> Self:
        """A copy in which the named hyperparameters have these values; see `ClassicalOptimizer`."""
        new = copy.deepcopy(self)
        for name in self._several(None).keys() & values.keys():
            number = torch.as_tensor(values.pop(name)).to(self.number)
            if not torch.isin(number, torch.arange(len(self.schedules)).to(number)).all():
                raise ValueError(f"optimizer.{name}={number.tolist()}: must be numbers of {', '.join(self.schedules)}")
            new.number = number.reshape(-1, 1) if number.dim() else number
        new.optimizer = self.optimizer.with_hyperparameters(**values)
        return new

    def _several(self, value: Any) -> dict[str, Any]:
        return {"schedule": value} if len(self.schedules) > 1 else {}

    def init(self, params: Params) -> ScheduledState:
        return ScheduledState(torch.zeros_like(params.flat[:, 0]), self.optimizer.init(params))

    def update(
        self, params: Params, grads: Params, loss: Tensor | None, state: ScheduledState
    ) -> tuple[Params, ScheduledState]:
        factor = self.factor(state.step[:, None])
        if hasattr(self.optimizer, "update_at"):
            new, inner = self.optimizer.update_at(factor, params, grads, loss, state.inner)
        else:
            new, inner = self.optimizer.update(params, grads, loss, state.inner)
            new = params.like(torch.lerp(params.flat, new.flat, factor))  # where f = 1, exactly θ'
        return new, ScheduledState(state.step + 1, inner)

    def factor(self, steps: Tensor) -> Tensor:
        """The factor f after a number of steps, element by element."""
        table = self.factors.view(torch.float64)
        at = self.number.long() * table.shape[1] + steps.clamp(max=self.horizon).long()
        known = table.flatten().gather(0, at.flatten()).view_as(at)  # an index could be a mask, which no graph allows
        return known.to(steps.dtype)

    def _factor(self, name: str, steps: Tensor) -> Tensor:
        shape, warm_up = SCHEDULES[name]
        rise = round((warm_up if self.warm_up is None else self.warm_up) * self.horizon)
        progress = ((steps - rise) / max(self.horizon - rise, 1)).clamp(0, 1)
        return torch.where(steps < rise, (steps + 1) / (rise + 1), self.final + (1 - self.final) * shape(progress))

    def readout(self, params: Params, state: ScheduledState) -> Params:
        return self.optimizer.readout(params, state.inner)

    def hide_loss(self, state: ScheduledState, hidden: Tensor) -> ScheduledState:
        return state._replace(inner=self.optimizer.hide_loss(state.inner, hidden))

    def diagnose(self, params: Params, grads: Params, loss: Tensor | None, state: ScheduledState) -> dict[str, Tensor]:
        return self.optimizer.diagnose(params, grads, loss, state.inner)
