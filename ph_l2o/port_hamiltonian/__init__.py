"""The port-Hamiltonian optimizer: energy, controller, bases, the pure optimizer and its form in place."""

from ph_l2o.port_hamiltonian.diagonal import PortHamiltonian
from ph_l2o.port_hamiltonian.kronecker import PortHamiltonianKronecker

__all__ = ["PortHamiltonian", "PortHamiltonianKronecker"]
