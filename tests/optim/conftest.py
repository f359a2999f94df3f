"""A learned optimizer whose ports differ from tensor to tensor, and networks."""

import shutil

import pytest
import torch
from torch import nn

from ph_l2o.optim import PortHamiltonian, from_learned
from ph_l2o.optimizers import LSTM, Muon
from ph_l2o.optimizers import PortHamiltonian as Learned
from ph_l2o.port_hamiltonian import in_place

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")


FORMS = {
    "AdamW": lambda p, **o: torch.optim.AdamW(p, **({"lr": 0.01} | o)),
    "PortHamiltonian": PortHamiltonian,
    "compiled": lambda p, **o: PortHamiltonian(p, compile=True, **o),
    "kronecker": lambda p, **o: PortHamiltonian(p, pretrained="kronecker", **o),
    "averaging": lambda p, **o: PortHamiltonian(p, average=True, **o),
    "LSTM": lambda p, **o: from_learned(torch.manual_seed(1) and LSTM(hidden_size=4))(p, **o),
    "Muon": lambda p, **o: from_learned(Muon(lr=0.01))(p, **o),
}


@pytest.fixture(params=[pytest.param(x, marks=needs_compiler if x == "compiled" else ()) for x in FORMS])
def make(request):
    return FORMS[request.param]


@pytest.fixture
def learned(request) -> Learned:
    """Of the class that the test's parameter `learned` names, if it has one."""
    torch.manual_seed(7)
    made = getattr(request, "param", Learned)(hidden_size=8)
    with torch.no_grad():
        for p in made.parameters():
            p += 0.3 * torch.randn_like(p)
    return made


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(100 + seed)
    x = torch.randn(16, 4)
    return x, x.sum(1, keepdim=True).sin()


def loss_of(model: nn.Module, seed: int = 0) -> torch.Tensor:
    x, y = batch(seed)
    return (model(x) - y).square().mean()


def train(model, optimizer, steps: int = 5, first: int = 0, with_loss: bool = True) -> list[float]:
    losses = []
    for k in range(first, first + steps):
        optimizer.zero_grad()
        loss = loss_of(model, k)
        loss.backward()
        if with_loss:
            optimizer.step(loss=loss)
        else:
            optimizer.step()
        losses.append(loss.item())
    return losses


def account(optimizer) -> dict[str, float]:
    """The numbers of the account of energy, by name."""
    state = in_place.state_of(next(m["account"] for m in optimizer.state.values() if "account" in m))
    return {name: x for name, x in state._asdict().items() if x is not None}


def flat(model: nn.Module) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
