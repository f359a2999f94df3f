"""ph_l2o: learned optimizers in PyTorch, with a port-Hamiltonian one at their heart.

Sub-packages are imported on first use, so `import ph_l2o` costs little more than `import torch`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ph_l2o.lazy import resolve

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "data",
    "estimators",
    "evaluation",
    "inner",
    "meta",
    "meta_train",
    "optim",
    "optimizers",
    "tasks",
]

if TYPE_CHECKING:
    from ph_l2o import data, estimators, evaluation, inner, meta, optim, optimizers, tasks
    from ph_l2o.meta import meta_train


def __getattr__(name: str) -> Any:
    if name == "meta_train":
        return resolve("ph_l2o.meta:meta_train")
    if name in __all__:
        return resolve(f"ph_l2o.{name}")
    raise AttributeError(f"module 'ph_l2o' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
