"""Optimizers, learned and classical, behind one interface."""

from ph_l2o.optimizers.base import LearnedOptimizer, detach_state, map_state
from ph_l2o.optimizers.classical import SGD, Adam, AdamW, ClassicalOptimizer, Momentum, Nesterov, RMSprop
from ph_l2o.optimizers.hnn import HNN
from ph_l2o.optimizers.lstm import LSTM
from ph_l2o.optimizers.muon import Muon
from ph_l2o.optimizers.port_hamiltonian import PortHamiltonian
from ph_l2o.optimizers.port_hamiltonian_kronecker import PortHamiltonianKronecker
from ph_l2o.optimizers.soap import SOAP

__all__ = [
    "HNN",
    "LSTM",
    "SGD",
    "SOAP",
    "Adam",
    "AdamW",
    "ClassicalOptimizer",
    "LearnedOptimizer",
    "Momentum",
    "Muon",
    "Nesterov",
    "PortHamiltonian",
    "PortHamiltonianKronecker",
    "RMSprop",
    "detach_state",
    "map_state",
]
