"""Optimizers, learned and classical, behind one interface.

Every file of this folder is imported, so that each class in it is known by its name: a new one needs no entry here.
The port-Hamiltonian ones have a room of their own, above this one, and are shown here too.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from ph_l2o.lazy import resolve
from ph_l2o.optimizers.averaged import Averaged
from ph_l2o.optimizers.classical import SGD, Adam, AdamW, ClassicalOptimizer, Momentum, Nesterov, RMSprop
from ph_l2o.optimizers.coordinatewise_mlp import CoordinatewiseMLP
from ph_l2o.optimizers.hnn import HNN
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer, map_state
from ph_l2o.optimizers.lstm import LSTM
from ph_l2o.optimizers.muon import Muon
from ph_l2o.optimizers.nadamw import NAdamW
from ph_l2o.optimizers.prodigy import Prodigy
from ph_l2o.optimizers.rnnprop import RNNprop
from ph_l2o.optimizers.schedule_free import ScheduleFreeAdamW
from ph_l2o.optimizers.scheduled import Scheduled, register_schedule
from ph_l2o.optimizers.soap import SOAP

if TYPE_CHECKING:
    from ph_l2o.port_hamiltonian import PortHamiltonian, PortHamiltonianAblation, PortHamiltonianKronecker

__all__ = [
    "HNN",
    "LSTM",
    "SGD",
    "SOAP",
    "Adam",
    "AdamW",
    "Averaged",
    "ClassicalOptimizer",
    "CoordinatewiseMLP",
    "LearnedOptimizer",
    "Momentum",
    "Muon",
    "NAdamW",
    "Nesterov",
    "PortHamiltonian",
    "PortHamiltonianAblation",
    "PortHamiltonianKronecker",
    "Prodigy",
    "RMSprop",
    "RNNprop",
    "ScheduleFreeAdamW",
    "Scheduled",
    "map_state",
    "register_schedule",
]

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)

_ABOVE = ("PortHamiltonian", "PortHamiltonianAblation", "PortHamiltonianKronecker")


def __getattr__(name: str) -> Any:
    if name in _ABOVE:
        return resolve(f"ph_l2o.port_hamiltonian:{name}")
    raise AttributeError(f"module 'ph_l2o.optimizers' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
