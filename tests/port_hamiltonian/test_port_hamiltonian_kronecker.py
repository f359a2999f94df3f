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
from ph_l2o.port_hamiltonian import bases
from ph_l2o.tasks import TeacherRegression
from tests.port_hamiltonian.test_port_hamiltonian import BROKEN, DTYPES, KINDS, attack, gradient_of, in_use
from tests.port_hamiltonian.test_port_hamiltonian import hostile as plain_hostile

LAYOUT = Layout(("w1", "b1", "k"), ((3, 4), (3,), (2, 3, 1, 2)))


@pytest.fixture(autouse=True)
def leading_sides(monkeypatch):
    """Not only in large matrices."""
    monkeypatch.setattr(bases, "WHOLE", 0)


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


@pytest.mark.parametrize("rank", [None, 1.0, 0.5])
@pytest.mark.parametrize("frequency", [3, 10])
@torch.no_grad()
def test_the_plain_optimizer_in_turned_coordinates(frequency, rank):
    """The same steps by full matrices Q_L ⊗ Q_R, and eigenvectors and variances in the words of their definition."""
    optimizer = hostile(1, std=0.3, precondition_frequency=frequency, basis_rank=rank)
    plain = PortHamiltonian().double()
    plain.controller.load_state_dict(optimizer.controller.state_dict())
    torch.manual_seed(0)
    params = Params(torch.randn(1, LAYOUT.numel, dtype=torch.float64), LAYOUT)
    center, metric = torch.randn_like(params.flat), torch.randn(LAYOUT.numel, LAYOUT.numel, dtype=torch.float64)
    shapes = {"w1": (3, 4), "b1": (3, 1), "k": (2, 6)}
    sides = {
        name: [Oracle(axis, n, rank, shape) for axis, n in enumerate(shape) if n > 1] for name, shape in shapes.items()
    }
    whole = kronecker(sides)
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
        matrices = {name: part[0].reshape(shapes[name]) for name, part in params.like(grad).items()}
        for name, g in matrices.items():
            for side in sides[name]:
                side.see(g, step)
        if step not in (1, 2, 4, 7) and step % frequency:
            continue
        found = [x[0] for x in optimizer.bases(LAYOUT)._blocks(state.basis)]
        second = {name: part[0].view(shapes[name]) for name, part in params.like(dynamics.second).items()}
        for name, of_tensor in sides.items():
            for side in of_tensor:
                change = side.renew(found.pop(0), matrices[name], step)
                second[name] = side.variances(second[name], change)
        change = whole.T @ (whole := kronecker(sides))
        dynamics = dynamics._replace(
            averages=dynamics.averages @ change,
            momentum=dynamics.momentum @ change,
            second=torch.cat([x.flatten() for x in second.values()])[None],
        )
    unit, in_order = dynamics.gradient_unit**2, [side for of_tensor in sides.values() for side in of_tensor]
    for side, x in zip(in_order, optimizer.bases(LAYOUT)._blocks(state.gram), strict=True):
        torch.testing.assert_close(x[0] * unit, side.factor, rtol=1e-7, atol=1e-9 * side.factor.abs().max().item())


class Oracle:
    """A side in the words of its definition: all or the leading eigenvectors, and what the factor makes of them."""

    def __init__(self, axis: int, size: int, rank: float | None, shape: tuple[int, int]):
        self.axis, self.size = axis, size
        self.rank = size if rank is None or size == min(shape) or shape[1] == 1 else max(1, int(rank * min(shape)))
        self.basis, self.total = torch.eye(size).double(), 0.0
        self.factor = torch.zeros(size, self.rank).double()

    def product(self, g: torch.Tensor) -> torch.Tensor:
        g = g if self.axis == 0 else g.T
        product = g @ g.T
        return product if self.rank == self.size else product @ self.basis[:, : self.rank]

    def see(self, g: torch.Tensor, step: int) -> None:
        weight = 0.05 / (1 - 0.95**step)
        self.factor = (1 - weight) * self.factor + weight * self.product(g)

    def renew(self, q: torch.Tensor, g: torch.Tensor, step: int) -> torch.Tensor:
        """Check a new basis, and take it; from old coordinates to new ones."""
        old, k, factor = self.basis, self.rank, self.factor
        new = q if k == self.size else reflections(q)
        torch.testing.assert_close(new.T @ new, torch.eye(self.size).double(), rtol=0, atol=1e-9)
        self.basis = new
        if step == 1:
            if k < self.size:
                self.factor = self.product(g)
                factor = (g if self.axis == 0 else g.T) @ (g.T if self.axis == 0 else g)
            values = new[:, :k].T @ factor @ new[:, :k]
            below = values.tril(-1)
            torch.testing.assert_close(values.diagonal(), torch.linalg.eigvalsh(factor).flip(0)[:k])
        elif k == self.size:  # QR of a power iteration
            order = (old.T @ factor @ old).diagonal().argsort(descending=True)
            raised = factor + 1e-5 * factor.diagonal().mean() * torch.eye(k).double()
            below = (new.T @ (raised @ old)[:, order]).tril(-1)
        else:  # QR of the factor's part
            order = (old[:, :k].T @ factor).diagonal().argsort(descending=True)
            below = (new.T @ factor[:, order]).tril(-1)
            self.factor = factor @ old[:, :k].T @ new[:, :k]
        assert below.abs().max() <= 1e-9 * factor.abs().max()
        return old.T @ new

    def variances(self, second: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        x, k = second if self.axis == 1 else second.T, self.rank
        moved = x @ change.square()
        if k < self.size:  # the others keep their shares of what is left
            others = x[:, k:] / x[:, k:].sum(1, keepdim=True)
            moved[:, k:] = others * (x.sum(1) - moved[:, :k].sum(1))[:, None]
        return moved if self.axis == 1 else moved.T


def reflections(q: torch.Tensor) -> torch.Tensor:
    """The product of the reflections at the vectors below the diagonal."""
    product = torch.eye(len(q)).double()
    for k in range(q.shape[1]):
        y = torch.cat([torch.zeros(k), torch.ones(1), q[k + 1 :, k]])
        product = product @ (torch.eye(len(q)).double() - 2 * torch.outer(y, y) / y.dot(y))
    return product


def kronecker(sides: dict[str, list[Oracle]]) -> torch.Tensor:
    """Q_L ⊗ Q_R of all tensors, as a matrix for flat rows."""
    bases = {name: [side.basis for side in of_tensor] for name, of_tensor in sides.items()}
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
        ({"basis_rank": 0.0}, r"optimizer.basis_rank=0.0: must be in \(0, 1\], or null"),
        ({"basis_rank": 1.5}, "optimizer.basis_rank=1.5: must be in"),
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
