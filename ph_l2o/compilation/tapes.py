"""What compiled steps and updates share: how they take the meta-parameters, and what is done with their cotangents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.func import functional_call

from ph_l2o.inner import Tape, Window
from ph_l2o.inner.meta_parameters import join, split
from ph_l2o.inner.particles import Update, particle_update
from ph_l2o.params import Params

C = TypeVar("C")
Bind = Callable[[list[Tensor]], Update]  # from tensors with the meta-parameters to an update that has them


class RowTape(Tape[C]):
    """A tape whose compiled functions take all meta-parameters in one row, `phi`."""

    def __init__(self, window: Window):
        super().__init__(window)
        self.phi = join(window.phi)
        self._total: Tensor | None = None

    def add(self, of_phi: Tensor) -> None:
        """Add a step's part of the meta-gradient."""
        self._total = of_phi if self._total is None else self._total.add_(of_phi)

    def gradient(self) -> dict[str, Tensor]:
        return split(torch.zeros_like(self.phi) if self._total is None else self._total, self.window.phi)


def row_update(window: Window) -> Bind:
    """The optimizer's update with all meta-parameters in one row."""

    def bind(phi: list[Tensor]) -> Update:
        (row,) = phi
        by_name = split(row, window.phi)

        def update(params: Params, grads: Params, loss: Tensor, state: Any) -> tuple[Tensor, Any]:
            after, state = functional_call(window.optimizer, by_name, (params, grads, loss, state))
            return after.flat, state

        return update

    return bind


def particles_update(window: Window) -> Bind:
    """The update of particles, with each meta-parameter in a tensor of its own."""
    return lambda phi: particle_update(window.optimizer, dict(zip(window.phi, phi, strict=True)))


def full(cotangents: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """Cotangents with zeros in place of None, contiguous."""
    return [torch.zeros_like(x) if c is None else c.contiguous() for c, x in zip(cotangents, like, strict=True)]
