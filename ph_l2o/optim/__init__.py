"""Trained optimizers where `torch.optim.AdamW` would be."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ph_l2o.checkpoints import load_weights, save_weights
from ph_l2o.errors import WeightsError
from ph_l2o.optim.drop_in import DropIn
from ph_l2o.optim.drop_in_learned import Learned
from ph_l2o.optim.drop_in_port_hamiltonian import PortHamiltonian, is_port_hamiltonian
from ph_l2o.optim.surroundings import construction
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer

__all__ = ["DropIn", "Learned", "PortHamiltonian", "WeightsError", "from_learned", "load", "save_weights"]


def load(path: str | Path, *, plugins: Iterable[str] = ()) -> Callable[..., DropIn]:
    """What makes drop-in optimizers of a file's weights: `load("best.ckpt")(model.parameters())`.

    Args:
        path: A `.ckpt` of a training or a `.safetensors`; `default` or `kronecker` for weights in this package.
        plugins: Modules besides this package that may be imported for the optimizer's class.

    Returns:
        See `from_learned`.

    Raises:
        FileNotFoundError: If there is no such file.
        WeightsError: If the file is damaged, or of an optimizer that is not known here.
    """
    with construction():
        learned = load_weights(path, plugins=plugins)
    return from_learned(learned)


def from_learned(optimizer: LearnedOptimizer) -> Callable[..., DropIn]:
    """What makes drop-in optimizers of an optimizer, as `meta_train` returns it.

    Returns:
        A function of the parameters and of options: those of `PortHamiltonian` (without `pretrained`) for an optimizer
        of that class or a `PortHamiltonianKronecker`, of `Learned` for others.

    Example:
        >>> import torch
        >>> from ph_l2o.optimizers import LSTM
        >>> optimizer = from_learned(LSTM())(torch.nn.Linear(2, 1).parameters(), lr=0.5)
    """

    def make(params: Any, **options: Any) -> DropIn:
        if is_port_hamiltonian(optimizer):
            return PortHamiltonian(params, pretrained=optimizer, **options)
        return Learned(params, optimizer, **options)

    return make
