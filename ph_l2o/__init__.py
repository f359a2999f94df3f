"""ph_l2o: learned optimizers in PyTorch, with a port-Hamiltonian one at their heart."""

__version__ = "0.1.0"
