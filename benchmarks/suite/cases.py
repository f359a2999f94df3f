"""Optimizers, estimators and tasks by name, with the settings of the benchmarks."""

from __future__ import annotations

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


def estimators(truncation: int) -> dict[str, Callable[[], Estimator]]:
    """All of the registry; both orders of `truncated`; `full` has no truncation."""
    made: dict[str, Callable[[], Estimator]] = {}
    for name, factory in ESTIMATORS.items():
        if name == "truncated":
            made |= {f"truncated order {k}": _with(factory, truncation=truncation, order=k) for k in (1, 2)}
        elif name == "full":
            made[name] = factory
        else:
            has_window = "truncation" in inspect.signature(factory).parameters
            made[name] = _with(factory, **({"truncation": truncation} if has_window else {}))
    return made


def _with(factory: Callable[..., Estimator], **arguments: int) -> Callable[[], Estimator]:
    return lambda: factory(**arguments)
