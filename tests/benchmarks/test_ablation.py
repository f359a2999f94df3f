"""Variants of the port-Hamiltonian optimizer."""

import ablation
import pytest
import torch

from ph_l2o.inner import run
from ph_l2o.keys import ProblemKeys
from ph_l2o.params import Params
from ph_l2o.tasks import Quadratic

WITHOUT_ACCOUNT = ("no_account", "momentum", "adam")


@pytest.mark.parametrize("name", [name for name in ablation.VARIANTS if name not in WITHOUT_ACCOUNT])
@torch.no_grad()
def test_no_variant_exceeds_its_account(name):
    """For losses and gradients that have nothing to do with each other, in float64."""
    optimizer = ablation.made(name, 0, 0.05).double()
    generator = torch.Generator().manual_seed(0)
    params = Params.from_tensors({"a": torch.randn(3, 4, 2, generator=generator).double(), "b": torch.ones(3).double()})
    state = optimizer.init(params)
    start = state.energy
    for _ in range(40):
        before, scale = state.energy, 10 ** torch.empty(3, 1, dtype=torch.float64).uniform_(-3, 3, generator=generator)
        grads = params.like(scale * torch.randn(params.flat.shape, generator=generator).double())
        loss = torch.empty(3, dtype=torch.float64).uniform_(0.01, 10, generator=generator)
        params, state = optimizer.update(params, grads, loss, state)
        phi = torch.where(state.uses_loss > 0, (loss / state.loss_unit).clamp_min(1e-4), 1.0)
        in_use = state.trust**2 * phi + state.kinetic + 0.5 * state.stiffness * params.flat.square().sum(1)
        assert torch.isfinite(params.flat).all()
        assert (state.energy <= before).all() and (in_use <= state.energy + 1e-12 * start).all()


@torch.no_grad()
def test_each_variant_is_another_optimizer():
    last = {}
    for name in ablation.VARIANTS:
        optimizer, problem = (
            ablation.made(name, 0, 0.05),
            Quadratic(noise=0.5).sample(ProblemKeys(0, "val", 0, range(8))),
        )
        last[name] = run(optimizer, problem, 30)[0].params.flat
    whole = last.pop("whole")
    torch.testing.assert_close(last.pop("small budget"), whole)  # it lasts for a short run
    assert all(flat.isfinite().all() and not torch.allclose(flat, whole) for flat in last.values())


def test_a_measurement_is_made(tmp_path, monkeypatch):
    path = tmp_path / "found.json"
    monkeypatch.setattr(ablation, "set_up_torch", lambda threads: None)
    monkeypatch.setattr(ablation, "TASKS", {"quadratic": (lambda *arguments: {"mean": 1.0}, 1)})
    monkeypatch.setattr("sys.argv", ["ablation.py", "--task", "quadratic", "--variants", "ratio", "--json", str(path)])
    ablation.main()
    assert '"variant": "ratio"' in path.read_text()
