import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from ph_l2o.estimators import OBJECTIVES, Truncated
from ph_l2o.inner import Carry, Window, run, start
from ph_l2o.keys import ProblemKeys
from ph_l2o.optimizers import HNN, LSTM, Adam, CoordinatewiseMLP, LearnedOptimizer, PortHamiltonian, RNNprop
from ph_l2o.tasks.quadratic import Quadratic
from ph_l2o.tasks.task import Problem

MAKERS: dict[str, Callable[[], LearnedOptimizer]] = {
    "port_hamiltonian": lambda: PortHamiltonian(hidden_size=6),
    "lstm": lambda: LSTM(hidden_size=5),
    "lstm_raw": lambda: LSTM(hidden_size=5, num_layers=1, preprocess=False),
    "hnn": lambda: HNN(output_scale=0.05),
    "hnn_norm": lambda: HNN(output_scale=0.05, preprocess=False, norm=True),
    "rnnprop": lambda: RNNprop(hidden_size=4),
    "mlp": lambda: CoordinatewiseMLP(hidden_size=4),
    "adam": lambda: Adam(lr=0.05),
}
every_optimizer = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
K = 6


def quadratics(num_problems: int = 2, dim: int = 3, noise: float = 0.0) -> Problem:
    keys = ProblemKeys(0, "train", 0, range(num_problems))
    return Quadratic(dim, noise=noise).sample(keys, dtype=torch.float64)


def make_double(make: Callable[[], LearnedOptimizer], seed: int = 0) -> tuple[LearnedOptimizer, dict[str, Tensor]]:
    torch.manual_seed(seed)
    optimizer = make().double()
    return optimizer, {name: p.detach().clone() for name, p in optimizer.named_parameters()}


def outer_loss(optimizer, phi, problem, carry: Carry, first: int, objective) -> Tensor:
    """The objective over a window of K steps, without any derivative but the inner ones."""
    with torch.no_grad():
        for name, p in optimizer.named_parameters():
            p.copy_(phi[name])
    # `run` starts its draws at step 0; these problems have none.
    assert not problem.stochastic and first >= 0
    return objective(run(optimizer, problem, K, carry=carry)[1][1:])


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("windows", [0, 2], ids=["start", "later"])
@every_optimizer
def test_meta_gradient_matches_finite_difference(make, windows, name):
    optimizer, phi = make_double(make)
    problem, objective = quadratics(), OBJECTIVES[name]
    estimator = Truncated(order=2)
    carry = start(optimizer, problem)
    for w in range(windows):
        carry = estimator(Window(optimizer, phi, problem, carry, w * K, K, objective)).carry
    estimate = estimator(Window(optimizer, phi, problem, carry, windows * K, K, objective))
    assert estimate.outer_loss == outer_loss(optimizer, phi, problem, carry, windows * K, objective)
    eps = 1e-5
    size = sum(g.square().sum() for g in estimate.gradient.values()).sqrt()
    for _ in range(4):
        direction = {k: torch.randn_like(p) for k, p in phi.items()}
        ends = [
            outer_loss(optimizer, {k: p + s * eps * direction[k] for k, p in phi.items()}, problem, carry, 0, objective)
            for s in (1, -1)
        ]
        expected = (ends[0] - ends[1]) / (2 * eps)
        actual = sum((estimate.gradient[k] * d).sum() for k, d in direction.items())
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6 * size.item())


@pytest.mark.parametrize("name", OBJECTIVES)
@every_optimizer
def test_first_order_holds_the_inner_gradients_constant(make, name):
    optimizer, phi = make_double(make)
    problem, objective = quadratics(noise=0.3), OBJECTIVES[name]
    carry = start(optimizer, problem)
    carry = Truncated(order=1)(Window(optimizer, phi, problem, carry, 0, K, objective)).carry
    estimate = Truncated(order=1)(Window(optimizer, phi, problem, carry, K, K, objective))

    # Inner gradients and losses of the same window, as numbers; then θ_t(φ) from them, and its losses.
    leaves = {name: p.clone().requires_grad_() for name, p in phi.items()}
    params, state, losses = carry.params, carry.state, []
    for step, batch in enumerate(problem.batches(K, K + 1)):
        at = params.flat.detach().requires_grad_()
        loss = problem.loss(params.like(at), {}, batch)[0]
        (grad,) = torch.autograd.grad(loss.sum(), at)
        if step > 0:
            losses.append(problem.loss(params, {}, batch)[0])
        params, state = functional_call(optimizer, leaves, (params, params.like(grad), loss.detach(), state))
    expected = torch.autograd.grad(objective(torch.stack(losses)), list(leaves.values()), allow_unused=True)
    torch.testing.assert_close(estimate.losses, torch.stack(losses).detach())
    for (key, leaf), g in zip(leaves.items(), expected, strict=True):
        torch.testing.assert_close(estimate.gradient[key], torch.zeros_like(leaf) if g is None else g)


@pytest.mark.parametrize("order", [1, 2])
@every_optimizer
def test_windows_join_up(make, order):
    optimizer, phi = make_double(make)
    problem = quadratics(noise=0.3)
    carry, losses = start(optimizer, problem), []
    for w in range(3):
        estimate = Truncated(order=order)(Window(optimizer, phi, problem, carry, 4 * w, 4, OBJECTIVES["mean_loss"]))
        carry = estimate.carry
        losses.append(estimate.losses)
        assert estimate.outer_loss == estimate.losses.mean()
    torch.testing.assert_close(torch.cat(losses), run(optimizer, problem, 12)[1][1:])
    assert all(p.grad is None for p in optimizer.parameters())
    assert all(torch.equal(p, phi[name]) for name, p in optimizer.named_parameters())


@pytest.mark.parametrize("order", [1, 2])
@every_optimizer
def test_nothing_that_comes_out_has_a_graph(make, order):
    optimizer, phi = make_double(make)
    problem = quadratics()
    carry = start(optimizer, problem)
    estimate = Truncated(order=order)(Window(optimizer, phi, problem, carry, 0, 3, OBJECTIVES["mean_loss"]))
    out = [estimate.outer_loss, estimate.losses, *estimate.gradient.values()]
    out += [estimate.carry.params.flat, *estimate.carry.state]
    assert not any(t.requires_grad for t in out)


@pytest.mark.parametrize("order", [1, 2])
@every_optimizer
def test_memory_flat_over_outer_steps(make, order):
    optimizer, phi = make_double(make)
    problem = quadratics()
    estimator, carry, counts = Truncated(order=order), start(optimizer, problem), []
    for w in range(16):
        estimate = estimator(Window(optimizer, phi, problem, carry, 2 * w, 2, OBJECTIVES["mean_log_loss"]))
        carry = estimate.carry
        if w in (5, 15):
            counts.append(live_storage())
    assert counts[0] == counts[1]


def live_storage() -> tuple[int, int]:
    """Number of the tensors that Python can reach, and the bytes that they hold."""
    gc.collect()
    tensors = [x for x in gc.get_objects() if type(x) is Tensor]
    return len(tensors), sum({t.data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("order", [1, 2])
def test_memory_of_the_process_is_flat(order):
    """What a graph holds is out of Python's sight: 80 windows of 2 MB each, if they were kept."""
    optimizer = MAKERS["port_hamiltonian"]().double()
    phi = dict(optimizer.named_parameters())
    problem = quadratics(num_problems=64, dim=32)
    estimator, carry, sizes = Truncated(order=order), start(optimizer, problem), []
    for w in range(100):
        carry = estimator(Window(optimizer, phi, problem, carry, 2 * w, 2, OBJECTIVES["mean_log_loss"])).carry
        if w in (19, 99):
            gc.collect()
            sizes.append(resident_bytes())
    assert sizes[1] - sizes[0] < 40e6


def resident_bytes() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096
    except FileNotFoundError:
        pytest.skip("the operating system has no /proc")


def test_arguments_out_of_range():
    with pytest.raises(ValueError, match=r"estimator.order=3: must be 1"):
        Truncated(order=3)  # type: ignore[arg-type]
