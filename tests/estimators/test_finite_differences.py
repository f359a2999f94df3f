"""Exact estimators against central differences of runs without any derivative but the inner ones."""

from collections.abc import Callable

import pytest
import torch
from example_modules import VECTOR
from test_module import KEYS, Fit
from test_truncated import MAKERS, make_double, quadratics
from torch import Tensor

from ph_l2o.estimators import OBJECTIVES, Estimator, Forward, Full, Truncated
from ph_l2o.inner import Window, run, start
from ph_l2o.tasks import Problem
from ph_l2o.tasks.mlp import MLP

K, WINDOWS = 3, 2
MEAN = OBJECTIVES["mean_loss"]
OPTIMIZERS = {name: MAKERS[name] for name in ("port_hamiltonian", "lstm", "hnn", "adam")}
PROBLEMS: dict[str, Callable[[], Problem]] = {
    "quadratic": lambda: quadratics(noise=0.3),
    "mlp": lambda: Fit(KEYS, lambda: MLP([3, 4, 2], "tanh"), VECTOR),
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
every_problem = pytest.mark.parametrize("make_problem", PROBLEMS.values(), ids=PROBLEMS)


def check(gradient: dict[str, Tensor], loss: Callable[[], Tensor], optimizer, phi: dict[str, Tensor]) -> None:
    """⟨gradient, v⟩ against (loss(φ + ε v) - loss(φ - ε v)) / 2ε, for a few v."""
    eps, size = 1e-5, sum(g.square().sum() for g in gradient.values()).sqrt().item()
    assert size > 1e-6
    for _ in range(3):
        v = {name: torch.randn_like(p) for name, p in phi.items()}
        ends = []
        for sign in (1, -1):
            optimizer.load_state_dict({name: p + sign * eps * v[name] for name, p in phi.items()}, strict=False)
            ends.append(loss())
        actual = sum((gradient[name] * d).sum() for name, d in v.items())
        torch.testing.assert_close(actual, (ends[0] - ends[1]) / (2 * eps), rtol=1e-5, atol=1e-6 * size)


@pytest.mark.parametrize("estimator", [Full(), Forward()], ids=["full", "forward"])
@every_problem
@every_optimizer
def test_of_the_whole_episode(make, make_problem, estimator: Estimator):
    optimizer, phi = make_double(make)
    problem = make_problem()
    steps = estimator.window_length(K, K * WINDOWS)
    count = K * WINDOWS // steps
    carry, gradient = estimator.start(optimizer, problem), {name: torch.zeros_like(p) for name, p in phi.items()}
    for w in range(count):
        estimate = estimator(Window(optimizer, phi, problem, carry, w * steps, steps, MEAN))
        carry = estimate.carry
        gradient = {name: g + estimate.gradient[name] / count for name, g in gradient.items()}
    check(gradient, lambda: run(optimizer, problem, K * WINDOWS)[1][1:].mean(), optimizer, phi)


@every_problem
@every_optimizer
def test_of_a_window_by_truncated(make, make_problem):
    """The second one, from a carry that is held constant."""
    optimizer, phi = make_double(make)
    problem, estimator = make_problem(), Truncated()
    carry = estimator(Window(optimizer, phi, problem, start(optimizer, problem), 0, K, MEAN)).carry
    gradient = estimator(Window(optimizer, phi, problem, carry, K, K, MEAN)).gradient
    check(gradient, lambda: run(optimizer, problem, K, carry=carry, first=K)[1][1:].mean(), optimizer, phi)
