"""Variants of the port-Hamiltonian energy."""

import ablation
import pytest
import torch

from ph_l2o.params import Params


@pytest.mark.parametrize("name", ablation.VARIANTS)
def test_no_variant_gains_energy(name):
    """For losses and gradients that have nothing to do with each other, in float64."""
    optimizer = ablation.made(name, 0, 0.05).double()
    generator = torch.Generator().manual_seed(0)
    params = Params.from_tensors({"a": torch.randn(3, 4, 2, generator=generator).double(), "b": torch.ones(3).double()})
    state, before = optimizer.init(params), None
    for _ in range(40):
        scale = 10 ** torch.empty(3, 1, dtype=torch.float64).uniform_(-3, 3, generator=generator)
        grads = params.like(scale * torch.randn(params.flat.shape, generator=generator).double())
        loss = torch.empty(3, dtype=torch.float64).uniform_(0.01, 10, generator=generator)
        with torch.no_grad():
            params, state = optimizer.update(params, grads, loss, state)
        energy = (state.r_squared + state.kinetic + state.tank).reshape(3, -1)
        assert torch.isfinite(params.flat).all()
        if before is not None:
            assert (energy <= before * (1 + 1e-12)).all()
        before = energy
