"""Forward mode: against back-propagation, along its own directions, on every kind of problem."""

import pytest
import torch
from example_modules import ALL, VECTOR
from test_evolution import leaves
from test_module import KEYS, Fit
from test_truncated import every_optimizer, make_double, quadratics
from torch import Tensor, nn

from ph_l2o.estimators import OBJECTIVES, ESSingle, Estimator, Forward, Full
from ph_l2o.estimators.tangents import hessian_times, jacobian_times
from ph_l2o.inner import Window, run
from ph_l2o.keys import ProblemKeys
from ph_l2o.optimizers import SGD, Adam, PortHamiltonian
from ph_l2o.tasks import Problem, Quadratic

every_noise = pytest.mark.parametrize("noise", ["shared", "per_problem"])
MEAN = OBJECTIVES["mean_loss"]
K = 3


def episode(
    estimator: Estimator, optimizer, phi, problem: Problem, objective=MEAN, steps: int = 2 * K, truncation: int = K
) -> Tensor:
    """The mean over windows of the meta-gradient, as one row."""
    carry, found = estimator.start(optimizer, problem), []
    count = estimator.window_length(truncation, steps)
    for first in range(0, steps, count):
        estimate = estimator(Window(optimizer, phi, problem, carry, first, count, objective))
        carry = estimate.carry
        found.append(torch.cat([estimate.gradient[name].flatten() for name in phi]))
    return torch.stack(found).mean(0)


def assert_equal(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize("name", ["mean_loss", "mean_log_loss"])
@every_optimizer
def test_all_directions_over_windows_are_back_propagation_through_the_episode(make, name):
    optimizer, phi = make_double(make)
    problem, objective = quadratics(3, noise=0.3), OBJECTIVES[name]
    exact = episode(Full(), optimizer, phi, problem, objective)
    assert_equal(episode(Forward(), optimizer, phi, problem, objective), exact)
    assert_equal(episode(Forward(), optimizer, phi, problem, objective, truncation=2 * K), exact)
    assert (exact != 0).sum() > len(exact) / 2


not_on_torch_2_11 = pytest.mark.xfail(
    torch.__version__ < "2.12", reason="it cannot batch the second derivative of GroupNorm", strict=True
)


@pytest.mark.parametrize("name", [pytest.param(n, marks=not_on_torch_2_11 if n == "group norm" else ()) for n in ALL])
def test_on_every_kind_of_module(name):
    """Also without a fall-back to a slow loop over directions: that would warn."""
    optimizer, phi = make_double(lambda: Adam(lr=0.05))
    problem = Fit(KEYS, *ALL[name])
    exact = episode(Full(), optimizer, phi, problem, steps=4)
    assert_equal(episode(Forward(), optimizer, phi, problem, steps=4, truncation=2), exact)
    draws = Forward(num_directions=2, noise="shared")
    along = draws.directions(problem, phi)[0]
    assert_equal(episode(draws, optimizer, phi, problem, steps=4, truncation=2), (along @ exact) @ along / 2)


@every_noise
@every_optimizer
def test_random_directions_give_the_projections_on_them(make, noise):
    """1/n Σ (∇J · v) v with one v for the whole episode; the problem's own ∇J where it has directions of its own."""
    optimizer, phi = make_double(make)
    parts = [
        Quadratic(3).sample(ProblemKeys(0, "train", 0, [k]), dtype=torch.float64) for k in range(2)
    ]  # fmt: skip
    exact = torch.stack([episode(Full(), optimizer, phi, part) for part in parts]) / 2
    problem, estimator = quadratics(2), Forward(num_directions=3, noise=noise)
    v = estimator.directions(problem, phi).expand(2, -1, -1)
    expected = torch.einsum("bpd,bd,bpe->e", v, exact, v) / 3
    assert_equal(episode(estimator, optimizer, phi, problem), expected, 1e-10)


@every_noise
def test_es_single_comes_to_it_as_sigma_vanishes(noise):
    """They have the same draws, and antithetic differences have an error of order σ²."""
    optimizer, phi = make_double(lambda: PortHamiltonian(hidden_size=4))
    problem = quadratics(2)
    ours = episode(Forward(num_directions=2, noise=noise), optimizer, phi, problem)
    gaps = [
        (episode(ESSingle(num_pairs=2, sigma=sigma, noise=noise), optimizer, phi, problem) - ours).norm()
        for sigma in (1e-2, 1e-3)
    ]
    assert gaps[1] < 1e-4 * ours.norm() and gaps[0] / gaps[1] == pytest.approx(100, rel=0.2)


@pytest.mark.parametrize("count", [None, 2])
@every_noise
def test_what_comes_out(count, noise):
    """No graph, the problem axis in front, and the trajectory of the optimizer itself."""
    optimizer, phi = make_double(lambda: PortHamiltonian(hidden_size=4))
    problem, estimator = quadratics(3), Forward(num_directions=count, noise=noise)
    leaf = {name: p.requires_grad_() for name, p in phi.items()}
    carry = estimator.start(optimizer, problem)
    estimate = estimator(Window(optimizer, leaf, problem, carry, 0, K, MEAN))
    for before, after in zip(leaves(carry), leaves(estimate.carry), strict=True):
        assert before.shape == after.shape and len(after) == 3 and before.dtype == after.dtype
        assert not after.requires_grad and after.is_contiguous()
    last, losses = run(optimizer, problem, K)
    assert torch.equal(estimate.losses, losses[1:]) and torch.equal(estimate.outer_loss, losses[1:].mean())
    assert torch.equal(estimate.carry.params.flat, last.params.flat)
    for ours, theirs in zip(estimate.carry.state.optimizer, last.state, strict=True):
        assert torch.equal(ours, theirs)
    assert not any(g.requires_grad for g in estimate.gradient.values())
    assert {name: g.shape for name, g in estimate.gradient.items()} == {name: p.shape for name, p in phi.items()}


class Remembering(nn.Module):
    """A buffer that is a function of the parameters, and enters the loss."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2))
        self.register_buffer("last", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        out = x @ self.weight + 0.1 * self.last
        self.last.copy_(out.mean(0))
        return out


def test_buffers_that_are_functions_of_the_parameters_are_refused():
    optimizer, phi = make_double(SGD)
    with pytest.raises(ValueError, match=r"estimator=forward: the task's buffer last is differentiable"):
        episode(Forward(), optimizer, phi, Fit(KEYS, Remembering, VECTOR))


def test_jacobian_of_what_depends_on_little():
    """Outputs that are inputs, constants, or functions of one input; against derivatives by hand."""
    x, y = (torch.randn(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    v, w = torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    outputs = [x, x.detach() + 1, x.sin() * y, y.square().sum()]
    found = jacobian_times(outputs, [x, y], [v, w])
    expected = [v, torch.zeros(5, 2), x.cos() * y * v + x.sin() * w, 2 * w @ y]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs.detach().double())
    assert all(not t.any() for t in jacobian_times([x.detach()], [x], [v]))
    assert not hessian_times(torch.ones(2), x, v[:, None]).any()


@pytest.mark.parametrize("make", [SGD, Adam])
def test_a_loss_without_curvature(make):
    class Linear(Quadratic):
        def sample(self, keys, **where):
            problem = super().sample(keys, **where)
            problem.loss = lambda params, buffers, batch: (params.flat.sum(1), buffers)
            return problem

    optimizer, phi = make_double(make)
    problem = Linear(3).sample(ProblemKeys(0, "train", 0, range(2)), dtype=torch.float64)
    assert_equal(episode(Forward(), optimizer, phi, problem), episode(Full(), optimizer, phi, problem))


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Forward(num_directions=0), "estimator.num_directions=0: must be a whole number >= 1 .* or null"),
    (lambda: Forward(num_directions=1.5), "estimator.num_directions=1.5: must be a whole number >= 1"),
    (lambda: Forward(noise="own"), "estimator.noise=own: must be shared or per_problem"),
])  # fmt: skip
def test_arguments_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
