"""What is left of the port-Hamiltonian optimizer without parts of its structure, against plain formulas."""

import math

import pytest
import torch
from torch import Tensor

from ph_l2o import recipes
from ph_l2o.inner import run
from ph_l2o.keys import ProblemKeys
from ph_l2o.optim import from_learned
from ph_l2o.optimizers import PortHamiltonian, PortHamiltonianAblation
from ph_l2o.params import Layout, Params
from ph_l2o.port_hamiltonian import controller
from ph_l2o.port_hamiltonian.ablation import STRUCTURES
from ph_l2o.port_hamiltonian.controller import Ports
from ph_l2o.tasks import Quadratic

LAYOUT = Layout(("w", "b"), ((3, 4), (3,)))
F64 = torch.float64
STEPS = 30


def hostile(structure: str, seed: int, std: float = 0.3, **arguments) -> PortHamiltonianAblation:
    torch.manual_seed(seed)
    optimizer = PortHamiltonianAblation(structure=structure, **arguments).to(F64)
    with torch.no_grad():
        for p in optimizer.parameters():
            p += std * torch.randn_like(p)
    return optimizer


def average(values: list[Tensor], decay: float) -> Tensor:
    """Bias-corrected, from all values so far."""
    weights = [decay**k for k in range(len(values))][::-1]
    return sum(w * x for w, x in zip(weights, values, strict=True)) / sum(weights)


class Plain:
    """The formulas in the gradient's and the loss's own units, from all gradients and losses so far."""

    def __init__(self, structure: str, theta: Tensor, budget: float, radius: float):
        self.structure, self.theta = structure, theta.clone()
        self.rest = 0.5 * radius * math.sqrt(max((theta**2).sum().item(), theta.numel()))
        self.kappa = 2 * budget / self.rest**2
        self.grads, self.losses, self.momentum, self.unit = [], [], torch.zeros_like(theta), 1.0

    def step(self, ports: Ports, grad: Tensor, loss: float) -> None:
        self.grads.append(grad)
        self.losses.append(torch.tensor(loss, dtype=F64))
        m, v = average(self.grads, 0.9), average([g * g for g in self.grads], 0.95)
        names = ("log_gain", "mix", "keep", "rho")
        gain, mix, keep, rho = (LAYOUT.expand(getattr(ports, n)) for n in names)
        gain, tiny = gain.clamp(-30, 8).exp(), 1e-10 * v.mean()
        if self.structure == "adam":
            self.theta = self.theta - gain * m / (v + tiny).sqrt()
            return
        floor = (1 - rho) * LAYOUT.expand(LAYOUT.sum(v) / torch.tensor(LAYOUT.sizes)) + tiny
        s, s_most = (gain / (rho * v + floor).sqrt()).sqrt(), (gain / floor.sqrt()).sqrt()
        h = s * ((1 - mix) * grad + mix * m)
        if self.structure == "momentum":
            self.momentum = keep * (self.momentum - h)
            self.theta = self.theta + s * self.momentum
            return
        old, self.unit = self.unit, average(self.losses, 0.9).item()
        phi, size = 4 * loss / self.unit, self.theta.norm()
        c, sigma = h / (2 * math.sqrt(phi * self.unit)), math.sqrt(self.unit) * s
        a = 1 / keep + 0.5 * self.kappa * self.unit * s_most**2
        pi = math.sqrt(old / self.unit) * self.momentum if len(self.losses) > 1 else self.momentum
        b = pi - sigma * self.kappa * (size - self.rest).clamp_min(0) / size * self.theta
        r = (math.sqrt(phi) + (c * b / a).sum()) / (1 + (2 * c * c / a).sum())
        self.momentum = (b - 2 * c * r) / a
        self.theta = self.theta + sigma * self.momentum


@pytest.mark.parametrize("structure", ["no_account", "momentum", "adam"])
@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_a_form_is_its_formula(structure, seed, monkeypatch):
    seen: list[Ports] = []
    set_ports = controller.ports
    monkeypatch.setattr(controller, "ports", lambda *arguments: seen.append(set_ports(*arguments)) or seen[-1])
    budget, radius = [(100.0, 1000.0), (1e3, 2.0), (1.0, 3.0)][seed]
    optimizer = hostile(structure, seed, budget=budget, radius=radius, init_lr=[0.05, 0.5, 0.2][seed])
    params = Params(torch.randn(2, LAYOUT.numel, dtype=F64), LAYOUT)
    plain = [Plain(structure, theta, budget, radius) for theta in params.flat]
    state = optimizer.init(params)
    for _ in range(STEPS):
        grads, loss = torch.randn_like(params.flat) * 3 ** torch.randn(2, 1).double(), 3 ** torch.randn(2).double()
        params, state = optimizer.update(params, params.like(grads), loss, state)
        for i, one in enumerate(plain):
            one.step(Ports(*(x[i] for x in seen[-1])), grads[i], loss[i].item())
            torch.testing.assert_close(params.flat[i], one.theta, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_the_whole_is_port_hamiltonian_bit_for_bit():
    torch.manual_seed(0)
    plain = PortHamiltonian(init_lr=0.1)
    whole = PortHamiltonianAblation(init_lr=0.1)
    whole.load_state_dict(plain.state_dict())
    problem = Quadratic(noise=0.5).sample(ProblemKeys(0, "val", 0, range(4)))
    (carry, losses), (other, same) = (run(o, problem, 40) for o in (plain, whole))
    assert torch.equal(losses, same)
    assert all(torch.equal(a, b) for a, b in zip(carry.tensors(), other.tensors(), strict=True))


def in_use(params: Params, loss: Tensor, state) -> Tensor:
    """H = r² + ½‖π‖² + V(θ) after a step."""
    phi = 4 * (loss / state.loss_unit).clamp_min(1e-4)
    beyond = (params.flat.norm(dim=1) - state.rest_radius).clamp_min(0)
    return state.trust**2 * phi + 0.5 * state.momentum.square().sum(1) + 0.5 * state.stiffness * beyond**2


@pytest.mark.parametrize("structure", STRUCTURES[:-1])
@torch.no_grad()
def test_without_the_account_the_energy_grows_without_bound(structure):
    """Losses that fall by 1e-30 while the gradient goes on pushing: each step lifts π in units of the loss."""
    optimizer = PortHamiltonianAblation(structure=structure).double()
    optimizer.controller[4].bias.data[2] = 8.0  # hardly any damping
    params = Params(torch.randn(2, LAYOUT.numel, dtype=F64), LAYOUT)
    state = optimizer.init(params)
    start, most, ball = state.energy.clone(), 0.0, (state.rest_radius + (2 * state.energy / state.stiffness).sqrt())
    for k in range(300):
        loss = torch.full((2,), 10.0 ** (-k / 10), dtype=F64)
        params, state = optimizer.update(params, params.like(-loss[0] * torch.ones_like(params.flat)), loss, state)
        most = max(most, in_use(params, loss, state).max().item())
    if structure in ("no_account", "momentum"):
        assert most > 1e6 * start.max()
        assert torch.equal(state.energy, start)  # nothing is paid
    else:
        assert most <= start.max() * (1 + 1e-12) and (params.flat.norm(dim=1) <= ball).all()


@torch.no_grad()
def test_momentum_alone_leaves_the_ball():
    last = {}
    for name in ("whole", "momentum"):
        optimizer = PortHamiltonianAblation(structure=name, radius=2.0, init_lr=1.0).double()
        params = Params(torch.ones(1, LAYOUT.numel, dtype=F64), LAYOUT)
        state = optimizer.init(params)
        radius = optimizer.radius * math.sqrt(LAYOUT.numel)
        for k in range(100):
            loss = torch.full((1,), 10.0 ** (k % 7), dtype=F64)
            params, state = optimizer.update(params, params.like(-params.flat), loss, state)
        last[name] = params.flat.norm().item() / radius
    assert last["whole"] <= 1 and last["momentum"] > 3


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("factor", [1e-20, 1e20])
@torch.no_grad()
def test_units_of_the_loss_do_not_matter(structure, factor):
    optimizer = PortHamiltonianAblation(structure=structure, init_lr=0.1)
    flats = []
    for unit in (1.0, factor):
        torch.manual_seed(0)
        params = Params(torch.randn(4, LAYOUT.numel), LAYOUT)
        center, state = torch.randn_like(params.flat), optimizer.init(params)
        for _ in range(60):
            away = params.flat - center
            loss = 0.5 * away.square().sum(1) + 0.01
            params, state = optimizer.update(params, params.like(unit * away), unit * loss, state)
        flats.append(params.flat)
        assert (params.flat - center).square().sum(1).max() < 0.5
    torch.testing.assert_close(flats[1], flats[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_what_is_not_finite_is_skipped_and_derivatives_are_finite(structure):
    optimizer = PortHamiltonianAblation(structure=structure).double()
    flat = torch.randn(2, LAYOUT.numel, dtype=F64)
    params = Params(flat, LAYOUT)
    state = optimizer.init(params)
    for k in range(4):
        grads, loss = params.flat.clone().detach(), params.flat.square().sum(1).detach()
        grads[1] = torch.where(torch.tensor(k == 1), torch.nan, grads[1])
        before = params.flat
        params, state = optimizer.update(params, params.like(grads), loss, state)
        assert torch.equal(before[1], params.flat[1]) == (k == 1)
    assert state.skipped.tolist() == [0, 1]
    found = torch.autograd.grad(params.flat.square().sum(), list(optimizer.parameters()))
    assert all(g.isfinite().all() for g in found) and any(g.abs().sum() > 0 for g in found)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_it_can_be_made_anew_and_used_as_a_drop_in(structure):
    optimizer = PortHamiltonianAblation(structure=structure, hidden_size=4)
    again = recipes.construct(optimizer.recipe)
    assert type(again) is PortHamiltonianAblation and again.structure == structure
    layer = torch.nn.Linear(3, 2)
    before = layer.weight.clone()
    drop_in = from_learned(optimizer)(layer.parameters())
    loss = layer(torch.ones(5, 3)).square().mean()
    loss.backward()
    drop_in.step(loss=loss)
    assert not torch.equal(before, layer.weight) and "PortHamiltonian" not in type(drop_in).__name__


def test_an_unknown_structure_is_refused():
    with pytest.raises(ValueError, match=r"optimizer.structure=adm: must be one of whole, .*; did you mean adam"):
        PortHamiltonianAblation(structure="adm")  # type: ignore[arg-type]
