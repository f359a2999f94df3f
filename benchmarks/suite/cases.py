"""Optimizers, estimators and tasks by name, with the settings of the benchmarks."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path

from ph_l2o.estimators import ESTIMATORS, Estimator
from ph_l2o.optimizers import (
    HNN,
    LSTM,
    SGD,
    Adam,
    AdamW,
    LearnedOptimizer,
    Momentum,
    Nesterov,
    PortHamiltonian,
    RMSprop,
)
from ph_l2o.tasks import ImageClassification, Quadratic, Task

OPTIMIZERS: dict[str, Callable[..., LearnedOptimizer]] = {
    "port_hamiltonian": PortHamiltonian,
    "lstm": LSTM,
    "hnn": HNN,
    "sgd": SGD,
    "momentum": Momentum,
    "nesterov": Nesterov,
    "rmsprop": RMSprop,
    "adam": Adam,
    "adamw": AdamW,
}
# Rates that are stable on quadratics, so that no step is skipped.
_ON_QUADRATICS = {
    "port_hamiltonian": {"init_lr": 0.05},
    "sgd": {"lr": 0.003},
    "momentum": {"lr": 0.001},
    "nesterov": {"lr": 0.001},
}
ALL_DIRECTIONS = "all directions"
MOST_DIRECTIONS = 100  # meta-parameters with which all directions are measured
TASKS = ("quadratic", "mnist")


def optimizer(name: str, task: str = "mnist") -> LearnedOptimizer:
    """An optimizer as meta-training starts with it."""
    return OPTIMIZERS[name](**(_ON_QUADRATICS.get(name, {}) if task == "quadratic" else {}))


def task(name: str, data: Path, activations: tuple[str, ...] = ("sigmoid",)) -> Task:
    """A task, with its data read."""
    made: Task = Quadratic()
    if name == "mnist":
        made = ImageClassification(activation=activations, data_dir=data)
        made.prepare()
        made.images("train")
    return made


def estimators() -> dict[str, Callable[[], Estimator]]:
    """All of the registry; both orders of `truncated`; all directions and one, where there is the choice."""
    made: dict[str, Callable[[], Estimator]] = {}
    for name, factory in ESTIMATORS.items():
        known = inspect.signature(factory).parameters
        if name == "truncated":
            made |= {f"{name} order {k}": functools.partial(factory, order=k) for k in (1, 2)}
        elif "num_directions" in known:
            made[f"{name} {ALL_DIRECTIONS}"] = functools.partial(factory, num_directions=None)
            made[f"{name} one direction"] = functools.partial(factory, num_directions=1)
        else:
            made[name] = factory
    return made


def refused(optimizer_name: str, estimator: str) -> str | None:
    """Why a combination is not measured, though the package offers it."""
    if not estimator.endswith(ALL_DIRECTIONS):
        return None
    directions = sum(p.numel() for p in optimizer(optimizer_name).parameters())
    if directions <= MOST_DIRECTIONS:
        return None
    return f"{directions:,} meta-parameters: as many tangents as that take hours and do not fit into memory"
