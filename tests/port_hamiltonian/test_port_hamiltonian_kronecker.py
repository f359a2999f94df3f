"""The Kronecker-factored port-Hamiltonian optimizer: the plain one, in coordinates that turn."""

import functools
import math

import pytest
import torch

from ph_l2o.estimators import OBJECTIVES, Truncated
from ph_l2o.inner import Window, run, start
from ph_l2o.keys import ProblemKeys
from ph_l2o.optimizers import PortHamiltonian, PortHamiltonianKronecker
from ph_l2o.params import Layout, Params
from ph_l2o.tasks import TeacherRegression
from tests.port_hamiltonian.test_port_hamiltonian import BROKEN, DTYPES, KINDS, attack, gradient_of, in_use
from tests.port_hamiltonian.test_port_hamiltonian import hostile as plain_hostile

LAYOUT = Layout(("w1", "b1", "k"), ((3, 4), (3,), (2, 3, 1, 2)))


hostile = functools.partial(plain_hostile, kind=PortHamiltonianKronecker)


@torch.no_grad()
def test_without_matrices_it_is_the_plain_optimizer():
    optimizer = hostile(0, max_preconditioner_dim=1)
    plain = PortHamiltonian().double()
    plain.controller.load_state_dict(optimizer.controller.state_dict())
    params, gradients, losses = attack(LAYOUT, 0)
    (one, one_state), (two, two_state) = (params, optimizer.init(params)), (params, plain.init(params))
    for gradient, loss in zip(gradients[:20], losses, strict=False):
        one, one_state = optimizer.update(one, params.like(gradient), loss, one_state)
        two, two_state = plain.update(two, params.like(gradient), loss, two_state)
    torch.testing.assert_close(one.flat, two.flat, rtol=1e-9, atol=0)
    torch.testing.assert_close(one_state.dynamics.energy, two_state.energy, rtol=1e-12, atol=0)


@pytest.mark.parametrize("frequency", [3, 10])
@torch.no_grad()
def test_the_plain_optimizer_in_turned_coordinates(frequency):
    """The same steps by full matrices Q_L ⊗ Q_R, and eigenvectors and variances in the words of their definition."""
    optimizer = hostile(1, std=0.3, precondition_frequency=frequency)
    plain = PortHamiltonian().double()
    plain.controller.load_state_dict(optimizer.controller.state_dict())
    torch.manual_seed(0)
    params = Params(torch.randn(1, LAYOUT.numel, dtype=torch.float64), LAYOUT)
    center, metric = torch.randn_like(params.flat), torch.randn(LAYOUT.numel, LAYOUT.numel, dtype=torch.float64)
    shapes = {"w1": (3, 4), "b1": (3, 1), "k": (2, 6)}
    sides = {name: [n for n in shape if n > 1] for name, shape in shapes.items()}
    factors = {name: [torch.zeros(n, n).double() for n in ns] for name, ns in sides.items()}
    bases = {name: [torch.eye(n).double() for n in ns] for name, ns in sides.items()}
    whole = kronecker(bases)
    state, dynamics, theta = optimizer.init(params), plain.init(params), params.flat[0]
    for step in range(1, 25):
        away = (params.flat - center) @ metric
        loss, grad = 0.5 * away.square().sum(1), away @ metric.T
        turned, dynamics = plain.update(
            params.like((whole.T @ theta)[None]), params.like((whole.T @ grad[0])[None]), loss, dynamics
        )
        theta = whole @ turned.flat[0]
        params, state = optimizer.update(params, params.like(grad), loss, state)
        torch.testing.assert_close(params.flat[0], theta, rtol=1e-8, atol=1e-10)
        for name, part in params.like(grad).items():
            g = part[0].reshape(shapes[name])
            weights = [0.95**j for j in range(step)]
            for k, product in enumerate((g @ g.T, g.T @ g)):
                if k < len(sides[name]):
                    factors[name][k] = (factors[name][k] * sum(weights[1:]) + product) / sum(weights)
        if step not in (1, 2, 4, 7) and step % frequency:
            continue
        blocks = iter(state.basis[0].split([n * n for ns in sides.values() for n in ns]))
        found = {name: [next(blocks).view(n, n) for n in ns] for name, ns in sides.items()}
        for name in shapes:
            for k, factor in enumerate(factors[name]):
                old, new = bases[name][k], found[name][k]
                torch.testing.assert_close(new.T @ new, torch.eye(len(new)).double(), rtol=0, atol=1e-9)
                if step == 1:
                    size = (new.T @ factor @ new).tril(-1)
                    torch.testing.assert_close((new.T @ factor @ new).diagonal(), torch.linalg.eigvalsh(factor).flip(0))
                else:  # QR
                    order = (old.T @ factor @ old).diagonal().argsort(descending=True)
                    size = (new.T @ (factor @ old)[:, order]).tril(-1)
                assert size.abs().max() <= 1e-9 * factor.abs().max()
                bases[name][k] = new
        change = whole.T @ (whole := kronecker(bases))
        dynamics = dynamics._replace(
            averages=dynamics.averages @ change,
            momentum=dynamics.momentum @ change,
            second=dynamics.second @ change.square(),
        )


def kronecker(bases: dict[str, list[torch.Tensor]]) -> torch.Tensor:
    """Q_L ⊗ Q_R of all tensors, as a matrix for flat rows."""
    return torch.block_diag(torch.kron(*bases["w1"]), *bases["b1"], torch.kron(*bases["k"]))


@DTYPES
@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_energy_and_ball_on_hostile_sequences(dtype, tolerance, seed):
    """Turning adds nothing to the account, and takes nothing out of the ball."""
    arguments = {"budget": [1e-2, 1.0, 100.0][seed % 3], "radius": [2.0, 1000.0][seed % 2]}
    optimizer = hostile(seed, dtype, precondition_frequency=1 + seed, **arguments)
    params, gradients, losses = attack(LAYOUT, seed, dtype)
    state = optimizer.init(params)
    start, radius = state.dynamics.energy.double(), state.radius().double()
    gradients, losses = gradients[:100], losses[:100]
    for gradient, loss in zip(gradients, losses, strict=True):
        old = state.dynamics
        params, state = optimizer.update(params, gradient_of(params, gradient), loss, state)
        now = state.dynamics
        fine = now.skipped == old.skipped
        assert (now.energy <= old.energy).all()
        assert (in_use(params, loss, now) <= now.energy.double() + tolerance * start)[fine].all()
        assert (params.flat.double().norm(dim=1) <= radius * (1 + tolerance)).all()
    assert all(x.isfinite().all() for x in (params.flat, *state.dynamics, state.gram, state.basis))
    broken = ~(gradients.isfinite().all(2) & losses.isfinite())
    assert broken[:, BROKEN].sum() > 10 and torch.equal(state.dynamics.skipped, broken.sum(0).to(dtype))


@pytest.mark.parametrize("first", [0, 3, 9])
@torch.no_grad()
def test_what_is_not_finite_is_skipped(first):
    optimizer = hostile(2, torch.float32)
    params, gradients, losses = attack(LAYOUT, 2, torch.float32)
    state = optimizer.init(params)
    for step in range(first):
        params, state = optimizer.update(params, params.like(gradients[step]), losses[step], state)
    gradient = gradients[first].clone()
    gradient[0, 5] = math.nan
    new, following = optimizer.update(params, params.like(gradient), losses[first], state)
    assert torch.equal(new.flat[0], params.flat[0])
    assert torch.equal(following.gram[0], state.gram[0]) and torch.equal(following.basis[0], state.basis[0])
    for name, old, now in zip(state.dynamics._fields, state.dynamics, following.dynamics, strict=True):
        assert torch.equal(now[0], old[0] + 1 if name == "skipped" else old[0]), name
    expected, _ = optimizer.update(params, params.like(gradients[first]), losses[first], state)
    torch.testing.assert_close(new.flat[1:6], expected.flat[1:6])


def test_meta_gradient_and_training_run():
    torch.manual_seed(0)
    optimizer = PortHamiltonianKronecker(hidden_size=4)
    problem = TeacherRegression(hidden_sizes=[6]).sample(ProblemKeys(0, "train", 0, range(3)))
    phi = dict(optimizer.named_parameters())
    carry = start(optimizer, problem)
    estimate = Truncated(amplification=3.0)(Window(optimizer, phi, problem, carry, 0, 12, OBJECTIVES["mean_log_loss"]))
    assert all(g.isfinite().all() for g in estimate.gradient.values())
    assert max(g.abs().max() for g in estimate.gradient.values()) > 1e-4
    losses = run(optimizer, problem, 12)[1]
    torch.testing.assert_close(estimate.losses, losses[1:], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precondition_frequency": 0}, "optimizer.precondition_frequency=0: must be >= 1"),
        ({"max_preconditioner_dim": -1}, "optimizer.max_preconditioner_dim=-1: must be >= 0"),
        ({"init_lr": 0.0}, "optimizer.init_lr=0.0: must be > 0"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        PortHamiltonianKronecker(**arguments)


def test_hidden_losses_and_diagnostics():
    optimizer = hostile(3)
    params, gradients, losses = attack(LAYOUT, 3)
    state = optimizer.hide_loss(optimizer.init(params), torch.arange(KINDS) < 2)
    assert state.dynamics.uses_loss.tolist() == [0.0] * 2 + [1.0] * (KINDS - 2)
    with torch.no_grad():
        for step in range(4):
            params, state = optimizer.update(params, params.like(gradients[step]), losses[step], state)
        found = optimizer.diagnose(params, params.like(gradients[4]), losses[4], state)
    assert found["lr"].shape == (KINDS, 3)
    torch.testing.assert_close(found["tank"], found["energy"] - found["kinetic"] - found["spring"])
