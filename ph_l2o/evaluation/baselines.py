"""Baselines by name: any classical optimizer, alone (`adam`) or under a schedule (`adam+cosine`).

A class is a baseline under its name in lower case, or under its full name, `package.module.Class`, as soon as it is
defined: an optimizer that has a `grid` of values to try and `with_hyperparameters`, and that can be made without
arguments. `name+schedule` takes any of `ph_l2o.optimizers.scheduled.SCHEDULES`; `name+best` is tuned over `TRIED` and
the optimizer's own grid in one batch. A last `+untuned` leaves the class's own hyperparameters as they are, and so does
`name@rate`, as in `adam@0.1` or `adam@0.1+cosine`, but for the learning rate.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ph_l2o import optimizers, recipes
from ph_l2o.checks import nearest
from ph_l2o.evaluation.modes import InMode
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.optimizers.scheduled import BEST, SCHEDULES, Scheduled

Entry = LearnedOptimizer | InMode | str  # a string is a baseline's name
Optimizers = Mapping[str, Entry] | Sequence[Entry] | Entry

UNTUNED, AT = "untuned", "@"
TRIED = ("constant", "cosine", "linear")


def names() -> tuple[str, ...]:
    """Of all baselines that are known, without schedules."""
    return tuple(dict.fromkeys(cls.__name__.lower() for cls in _classes()))


def unknown(name: str) -> str | None:
    """What is wrong with a name, for an error's end; None if it is a baseline's."""
    plain, rate, schedule = _parts(name)
    found = _found(plain)
    if not found:
        under = "" if schedule else f", each also with +{', +'.join((*SCHEDULES, BEST, UNTUNED))}, or @ and a rate"
        return f"no baseline has this name; {nearest(plain, names())}{under}"
    if len(found) > 1:
        return f"could be any of {', '.join(map(recipes.place, found))}; name one of these"
    if rate is not None and not _is_rate(rate):
        return f"after {AT} must be a learning rate, a number > 0, as in {plain}{AT}0.1"
    if schedule is not None and schedule not in (*SCHEDULES, BEST):
        return f"no schedule has this name; {nearest(schedule, (*SCHEDULES, BEST, UNTUNED))}"
    if schedule == BEST and is_untuned(name):
        has = f"+{UNTUNED}" if rate is None else f"{AT}{rate}"
        return f"+{BEST} is found by tuning; leave out {has}, or name a schedule"
    return None


def is_untuned(entry: Entry) -> bool:
    """Whether it is the name of a baseline that is run as it is."""
    return isinstance(entry, str) and (entry.endswith(f"+{UNTUNED}") or _parts(entry)[1] is not None)


def _parts(name: str) -> tuple[str, str | None, str | None]:
    """A name's class, learning rate and schedule, the last two None where it has none."""
    whole, plus, schedule = name.removesuffix(f"+{UNTUNED}").partition("+")
    plain, at, rate = whole.partition(AT)
    return plain, rate if at else None, schedule if plus else None


def _is_rate(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def ready(entry: Entry, horizon: int) -> LearnedOptimizer | None:
    """What is run over `horizon` inner steps; None for a baseline that is to be tuned before."""
    if isinstance(entry, InMode):
        return entry.at(horizon)
    if isinstance(entry, str):
        return baseline(entry, horizon) if is_untuned(entry) else None
    return entry


def baseline(name: str, horizon: int) -> Any:
    """A baseline with its class's default hyperparameters but for a rate that its name has, and with a `grid`.

    Args:
        name: Of the baseline.
        horizon: Inner steps until its schedule ends, >= 1.

    Raises:
        ValueError: If there is none of this name.
    """
    problem = unknown(name)
    if problem is not None:
        raise ValueError(f"optimizer={name}: {problem}")
    plain, rate, schedule = _parts(name)
    (cls,) = _found(plain)
    try:
        made = cls() if rate is None else cls().with_hyperparameters(lr=float(rate))
    except TypeError as error:
        raise ValueError(
            f"optimizer={name}: {recipes.place(cls)} must be possible without arguments ({error})"
        ) from error
    return Scheduled(made, TRIED if schedule == BEST else schedule, horizon=horizon) if schedule else made


def _found(name: str) -> list[type]:
    return [cls for cls in _classes() if name in (cls.__name__.lower(), recipes.place(cls))]


def _classes() -> list[type]:
    return [cls for cls in recipes.classes() if _is_baseline(cls)]


def _is_baseline(cls: type) -> bool:
    has_grid = isinstance(getattr(cls, "grid", None), Mapping) and hasattr(cls, "with_hyperparameters")
    return has_grid and not inspect.isabstract(cls)


def named_optimizers(optimizers: Optimizers) -> dict[str, Entry]:
    """Optimizers by name; a string is the name of a baseline."""
    if isinstance(optimizers, Entry):
        optimizers = [optimizers]
    named: dict[str, Entry] = {}
    if isinstance(optimizers, Mapping):
        named.update(optimizers)
    else:
        for optimizer in optimizers:
            name = optimizer if isinstance(optimizer, str) else _name(optimizer)
            if name in named and isinstance(optimizer, str):
                raise ValueError(f"optimizers: {name} is named twice")
            count = sum(key == name or key.startswith(f"{name}_") for key in named)
            named[f"{name}_{count + 1}" if name in named else name] = optimizer
    if not named:
        raise ValueError("optimizers=[]: must name at least one optimizer")
    for name, optimizer in named.items():
        if not isinstance(optimizer, Entry):
            raise ValueError(f"optimizers.{name}={optimizer!r}: must be a LearnedOptimizer, or a baseline's name")
        if isinstance(optimizer, str) and (problem := unknown(optimizer)):
            raise ValueError(f"optimizers=[…, {optimizer}]: {problem}")
    return named


def _name(optimizer: LearnedOptimizer | InMode) -> str:
    if isinstance(optimizer, InMode):
        return "+".join((_name(optimizer.optimizer), *optimizer.modes))
    return type(optimizer).__name__.lower()


def hyperparameters_of(optimizer: LearnedOptimizer) -> dict[str, float] | None:
    """Those of a classical optimizer; None of a learned one."""
    known = getattr(optimizer, "hyperparameters", None)
    return None if known is None else {k: float(torch.as_tensor(v).detach()) for k, v in known.items()}


def schedule_of(optimizer: LearnedOptimizer) -> str | None:
    """The name of its schedule; None if it has none."""
    return optimizer.schedule if isinstance(optimizer, Scheduled) else None


def check_grids(grids: Mapping[str, Any] | None) -> None:
    """Raise ValueError where a grid is for a baseline that is not known."""
    for name in grids or {}:
        if problem := unknown(name):
            raise ValueError(f"grids.{name}=…: {problem}")


BASELINES = tuple(cls.__name__.lower() for cls in _classes() if recipes.place(cls).startswith(optimizers.__name__))
