"""The port-Hamiltonian optimizer, all of it.

A step is written twice: `diagonal.py` has the pure optimizer, on B problems at once and differentiable, with the
theory; `in_place.py` has the step of the drop-in, on a user's own tensors. Energy and controller stand once, for both.

A step of the drop-in, from top to bottom:

1. `in_place.py`, `step`: the order of things; three passes over the coordinates, and numbers between them.
2. `kernels.py`, `Plain`: the passes `absorb`, `predict` and `move`; `fused.cpp` has them as compiled loops, for
   GPUs `triton_passes.py`; `passes.py` says which are taken.
3. `controller.py`, `ports`: what the network sees of each tensor, and what it sets.
4. `energy.py`: `observe` the loss and the gradient, `energies_before` the step, `solve_for_r`, `energy_after` it.

Their words are in `state.py`: what is remembered, what a step sees, its energies. They are written in the few
operations of `arithmetic.py`, which has each for tensors and for single numbers. `blocks.py` has a user's tensors and
what is remembered of them. The Kronecker-factored form takes the same steps in the bases of `bases.py`, around the pure
step in `kronecker.py`, around the one in place in `blocks.py`. `ablation.py` has the pure step with parts of the
structure taken away.
"""

from ph_l2o.port_hamiltonian.ablation import PortHamiltonianAblation
from ph_l2o.port_hamiltonian.diagonal import PortHamiltonian
from ph_l2o.port_hamiltonian.kronecker import PortHamiltonianKronecker

__all__ = ["PortHamiltonian", "PortHamiltonianAblation", "PortHamiltonianKronecker"]
