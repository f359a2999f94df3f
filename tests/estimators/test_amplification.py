"""The bound on derivatives that grow on the way back, against the recursion written out for one coordinate."""

import math

import pytest
import torch

from ph_l2o.estimators import OBJECTIVES, Truncated
from ph_l2o.inner import Window, start
from ph_l2o.keys import ProblemKeys
from ph_l2o.optimizers import SGD, PortHamiltonian
from ph_l2o.tasks import Landscape, Quadratic

K = 8


def bounded_by_hand(curvature: float, theta: float, lr: float, bound: float) -> float:
    """Meta-gradient in log lr of the mean of f(θ_1) … f(θ_K), f = ½ h θ², θ⁺ = θ - lr h θ."""
    thetas = [theta]
    for _ in range(K):
        thetas.append(thetas[-1] * (1 - lr * curvature))
    slopes = [curvature * x / K for x in thetas]  # of the mean
    cotangent, put_in, total = slopes[K], abs(slopes[K]), 0.0
    for k in range(K - 1, -1, -1):
        if abs(cotangent) > bound * put_in:
            cotangent = math.copysign(bound * put_in, cotangent)
        total += cotangent * -lr * curvature * thetas[k]
        if k > 0:
            cotangent = cotangent * (1 - lr * curvature) + slopes[k]
            put_in += abs(slopes[k])
    return total


@pytest.mark.parametrize("lr", [0.3, 1.9, 3.0], ids=["steady", "alternating", "growing"])
@pytest.mark.parametrize("bound", [0.5, 1.0, 2.0, 100.0])
def test_bounded_derivative_matches_the_recursion(lr, bound):
    problem = Quadratic(1).sample(ProblemKeys(0, "train", 0, range(1)), dtype=torch.float64)
    problem.minus_target = torch.zeros_like(problem.minus_target)
    curvature, theta = 2 * float(problem.matrix) ** 2, float(problem.params.flat)
    optimizer = SGD(lr=lr / curvature).double().with_hyperparameters(lr=lr / curvature)
    phi = dict(optimizer.named_parameters())
    estimator = Truncated(amplification=bound)
    found = estimator(Window(optimizer, phi, problem, start(optimizer, problem), 0, K, OBJECTIVES["mean_loss"]))
    expected = bounded_by_hand(curvature, theta, lr / curvature, bound)
    assert found.gradient["log_lr"].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("order", [1, 2])
def test_no_growth_no_change(order):
    torch.manual_seed(0)
    optimizer = PortHamiltonian(hidden_size=6).double()
    phi = dict(optimizer.named_parameters())
    problem = Quadratic(3, noise=0.1).sample(ProblemKeys(0, "train", 0, range(3)), dtype=torch.float64)
    carry = start(optimizer, problem)
    exact, loose, tight = (
        Truncated(order=order, amplification=bound)(
            Window(optimizer, phi, problem, carry, 0, K, OBJECTIVES["mean_log_loss"])
        )
        for bound in (None, 1e9, 0.1)
    )
    for name in phi:
        torch.testing.assert_close(loose.gradient[name], exact.gradient[name], rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(tight.carry.params.flat, exact.carry.params.flat)  # the inner loop is the same
    assert any(not torch.allclose(tight.gradient[name], exact.gradient[name]) for name in phi)


def test_a_chaotic_loop_gives_a_bounded_gradient():
    torch.manual_seed(0)
    optimizer = PortHamiltonian(hidden_size=6, init_lr=3.0)
    phi = dict(optimizer.named_parameters())
    problem = Landscape("rastrigin", dim=8).sample(ProblemKeys(0, "train", 0, range(4)))

    def norm(bound: float | None) -> float:
        estimate = Truncated(amplification=bound)(
            Window(optimizer, phi, problem, start(optimizer, problem), 0, 50, OBJECTIVES["mean_log_loss"])
        )
        return float(torch.cat([g.flatten() for g in estimate.gradient.values()]).norm())

    assert not norm(None) < 1e3  # too large, or not even finite
    assert norm(1.0) < 30


def test_a_bound_out_of_range():
    with pytest.raises(ValueError, match=r"estimator.amplification=0: must be > 0"):
        Truncated(amplification=0)
