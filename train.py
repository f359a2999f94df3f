"""Meta-train an optimizer: python train.py optimizer=port_hamiltonian task=mnist."""

from ph_l2o.cli import train

if __name__ == "__main__":
    train()
