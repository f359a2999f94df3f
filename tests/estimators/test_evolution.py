"""Evolution strategies: particles, draws, memory, every optimizer and kind of problem."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_truncated import every_optimizer, live_storage, make_double, quadratics
from torch import Tensor, nn

from ph_l2o.estimators import ES, NRES, OBJECTIVES, PES, ESSingle, Full, Truncated, directions
from ph_l2o.estimators.evolution import EvolutionStrategy
from ph_l2o.inner import Window, run, start
from ph_l2o.keys import ProblemKeys, Purpose
from ph_l2o.optimizers import HNN, LSTM, Adam, CoordinatewiseMLP, PortHamiltonian
from ph_l2o.tasks import ImageClassification, Quadratic, rescaled

every_strategy = pytest.mark.parametrize("make_estimator", [ES, PES, ESSingle, NRES])
every_noise = pytest.mark.parametrize("noise", ["shared", "per_problem"])
K = 3


def leaves(carry) -> list[Tensor]:
    def flat(x) -> list[Tensor]:
        return [t for part in x for t in flat(part)] if isinstance(x, tuple) else [x]

    return [carry.params.flat, *flat(carry.state), *carry.buffers.values()]


@every_noise
@every_optimizer
def test_a_particle_is_a_run_of_its_own(make, noise):
    """Over two windows, against the plain inner loop with the perturbed meta-parameters; and the estimate by hand."""
    optimizer, phi = make_double(make)
    problem = quadratics(num_problems=2, noise=0.3)
    estimator = ESSingle(num_pairs=2, sigma=0.05, noise=noise)
    carry, estimates = estimator.start(optimizer, problem), []
    for w in range(2):
        estimates.append(estimator(Window(optimizer, phi, problem, carry, w * K, K, OBJECTIVES["mean_loss"])))
        carry = estimates[-1].carry
    draws = estimator.draws(problem, 0, phi)
    assert draws.shape == (2 if noise == "per_problem" else 1, 2, sum(p.numel() for p in phi.values()))
    slopes = torch.zeros(2, 2, dtype=torch.float64)  # pair, problem; in the second window
    reported = 0
    for b in range(2):
        for i in range(2):
            for sign in (1, -1):
                z = draws[b if noise == "per_problem" else 0, i].split([p.numel() for p in phi.values()])
                moved = {n: p + sign * 0.05 * d.view_as(p) for (n, p), d in zip(phi.items(), z, strict=True)}
                optimizer.load_state_dict(moved, strict=False)
                last, losses = run(optimizer, problem, 2 * K)
                particle = i if sign == 1 else 2 + i
                torch.testing.assert_close(carry.params.flat[b, particle], last.params.flat[b], rtol=1e-9, atol=1e-11)
                for ours, theirs in zip(carry.state.optimizer, last.state, strict=True):
                    torch.testing.assert_close(ours[b, particle], theirs[b], rtol=1e-8, atol=1e-10)
                slopes[i, b] += sign * losses[K + 1 :, b].mean() / 0.1
                reported += losses[K + 1 :, b].mean() / 8
    torch.testing.assert_close(estimates[1].outer_loss, torch.as_tensor(reported))
    expected = torch.einsum("ib,bid->d", slopes / 4, draws.expand(2, -1, -1))
    actual = torch.cat([estimates[1].gradient[n].flatten() for n in phi])
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-8 * expected.abs().max().item())


@every_noise
@every_optimizer
def test_es_reports_and_leaves_what_the_optimizer_itself_does(make, noise):
    optimizer, phi = make_double(make)
    problem = quadratics(noise=0.3)
    carry, plain, estimator = start(optimizer, problem), start(optimizer, problem), ES(num_pairs=2, noise=noise)
    for w in range(2):
        ours = estimator(Window(optimizer, phi, problem, carry, w * K, K, OBJECTIVES["mean_log_loss"]))
        theirs = Truncated()(Window(optimizer, phi, problem, plain, w * K, K, OBJECTIVES["mean_log_loss"]))
        torch.testing.assert_close(ours.losses, theirs.losses)
        torch.testing.assert_close(ours.outer_loss, theirs.outer_loss)
        for a, b in zip(leaves(ours.carry), leaves(theirs.carry), strict=True):
            torch.testing.assert_close(a, b)
        carry, plain = ours.carry, theirs.carry


@every_strategy
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective(make_estimator, name):
    """With a tiny σ, the mean of many pairs comes close to the window's gradient."""
    optimizer, phi = make_double(lambda: Adam(lr=0.05))
    problem, estimator = quadratics(), make_estimator(num_pairs=2000, sigma=1e-4, noise="shared")
    found = estimator(
        Window(optimizer, phi, problem, estimator.start(optimizer, problem), 0, K, OBJECTIVES[name])
    ).gradient
    exact = Truncated()(Window(optimizer, phi, problem, start(optimizer, problem), 0, K, OBJECTIVES[name])).gradient
    size = sum(g.square().sum() for g in exact.values()).sqrt().item()
    for key, g in exact.items():
        torch.testing.assert_close(found[key], g, rtol=0, atol=0.15 * size)


@every_strategy
@every_noise
def test_nothing_that_comes_out_has_a_graph_and_the_problem_axis_is_in_front(make_estimator, noise):
    optimizer, phi = make_double(lambda: PortHamiltonian(hidden_size=4))
    problem = quadratics(num_problems=3)
    estimator = make_estimator(num_pairs=2, noise=noise)
    carry = estimator.start(optimizer, problem)
    leaf = {name: p.requires_grad_() for name, p in phi.items()}
    estimate = estimator(Window(optimizer, leaf, problem, carry, 0, K, OBJECTIVES["mean_loss"]))
    out = [estimate.outer_loss, estimate.losses, *estimate.gradient.values(), *leaves(estimate.carry)]
    assert not any(t.requires_grad for t in out)
    assert estimate.losses.shape == (K, 3)
    for before, after in zip(leaves(carry), leaves(estimate.carry), strict=True):
        assert before.shape == after.shape and len(after) == 3 and before.dtype == after.dtype
        assert after.is_contiguous()
    assert {n: g.shape for n, g in estimate.gradient.items()} == {n: p.shape for n, p in phi.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_are_those_of_box_and_muller(dtype):
    keys, phi = ProblemKeys(3, "train", 2, range(5)), {"a": torch.zeros(4, 5, dtype=dtype), "b": torch.zeros(3)}
    draws = directions.draw(keys, phi, 7, count=3, noise="per_problem")
    assert draws.shape == (5, 3, 23) and draws.dtype is dtype
    words = keys.words(Purpose.PERTURBATION, 7, 1, 35)[0]  # 69 numbers, two of each word
    halves = np.stack([words & 0xFFFFFFFF, words >> 32], -1).reshape(5, 70).astype(np.uint32).view(np.int32)
    radius, angle = np.sqrt(-2 * np.log(np.abs(halves[:, :35]) / 2**31)), 2 * np.pi * halves[:, 35:] / 2**32
    expected = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], 1)[:, :69].reshape(5, 3, 23)
    np.testing.assert_allclose(draws.numpy(), expected, atol=1e-5 if dtype is torch.float32 else 1e-12)


def test_draws_are_standard_normal():
    keys, phi = ProblemKeys(0, "train", 0, range(100)), {"a": torch.zeros(2000)}
    x = directions.draw(keys, phi, 0, count=1, noise="per_problem").flatten().double()
    n = len(x)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean() - moment) < 5 * (variance / n) ** 0.5
    cosines, sines = x.view(100, 2, 1000).unbind(1)
    assert abs((cosines * sines).mean()) < 5 / (n / 2) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_of_the_extreme_words_are_finite(dtype):
    ends = np.array([0, 2**32 - 1, 2**31 - 1, 2**31, 2**31 + 1], dtype=np.uint64)
    words = (ends[:, None] + (ends << np.uint64(32))).reshape(1, -1)
    draws = directions._normals(words, dtype)
    assert torch.isfinite(draws).all() and 0 < draws.abs().max() < 7


@every_noise
def test_draws_depend_on_nothing_but_their_key(noise):
    _, phi = make_double(lambda: Adam(lr=0.05))
    size = sum(p.numel() for p in phi.values())

    def draws(estimator: EvolutionStrategy, step: int, indices=range(4), episode: int = 0) -> Tensor:
        problem = Quadratic(3).sample(ProblemKeys(0, "train", episode, indices), dtype=torch.float64)
        return estimator.draws(problem, step, phi)

    all_of_them = draws(PES(noise=noise), 6)
    assert torch.equal(all_of_them, draws(ES(noise=noise), 6))  # whatever the estimator
    share = draws(PES(noise=noise), 6, range(2, 4))  # of the second of two processes
    assert torch.equal(share, all_of_them[2:] if noise == "per_problem" else all_of_them)
    assert not torch.equal(all_of_them, draws(PES(noise=noise), 9))
    assert not torch.equal(all_of_them, draws(PES(noise=noise), 6, episode=1))
    many = draws(PES(num_pairs=4000, noise=noise), 0, range(1))[0]
    assert many.shape == (4000, size)
    torch.testing.assert_close(many.T.cov(), torch.eye(size, dtype=torch.float64), rtol=0, atol=0.08)
    torch.testing.assert_close(many.mean(0), torch.zeros(size, dtype=torch.float64), rtol=0, atol=0.06)


@every_strategy
def test_the_same_again(make_estimator):
    found = []
    for _ in range(2):
        optimizer, phi = make_double(lambda: LSTM(hidden_size=4))
        problem, estimator = quadratics(noise=0.1), make_estimator(num_pairs=2)
        carry = estimator.start(optimizer, problem)
        for w in range(2):
            estimate = estimator(Window(optimizer, phi, problem, carry, w * K, K, OBJECTIVES["mean_loss"]))
            carry = estimate.carry
        found.append([*estimate.gradient.values(), *leaves(carry)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("make_estimator", [ESSingle, NRES])
def test_one_unroll_in_two_windows(make_estimator):
    """Where the perturbation stays the same, particles do not notice the windows."""
    optimizer, phi = make_double(lambda: PortHamiltonian(hidden_size=4))
    problem = quadratics(noise=0.3)
    estimator = make_estimator()
    carry = estimator(
        Window(optimizer, phi, problem, estimator.start(optimizer, problem), 0, 2 * K, OBJECTIVES["mean_loss"])
    ).carry
    split = estimator.start(optimizer, problem)
    for w in range(2):
        split = estimator(Window(optimizer, phi, problem, split, w * K, K, OBJECTIVES["mean_loss"])).carry
    for a, b in zip(leaves(carry), leaves(split), strict=True):
        assert torch.equal(a, b)


@every_strategy
def test_memory_flat_over_outer_steps(make_estimator):
    optimizer, phi = make_double(lambda: PortHamiltonian(hidden_size=4))
    problem, estimator, counts = quadratics(), make_estimator(), []
    carry = estimator.start(optimizer, problem)
    for w in range(16):
        estimate = estimator(Window(optimizer, phi, problem, carry, 2 * w, 2, OBJECTIVES["mean_log_loss"]))
        carry = estimate.carry
        if w in (5, 15):
            counts.append(live_storage())
    assert counts[0] == counts[1]


OPTIMIZERS = {
    "port_hamiltonian": lambda: PortHamiltonian(hidden_size=6),
    "lstm": lambda: LSTM(hidden_size=5),
    "hnn": lambda: HNN(output_scale=0.05),
    "mlp": lambda: CoordinatewiseMLP(hidden_size=5),
    "adam": lambda: Adam(lr=0.05),
}


class Small(nn.Sequential):
    """Convolution, running statistics and dropout."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 2, 5, stride=4), nn.BatchNorm2d(2), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(72, 10)
        )


def check_three_steps(estimator: EvolutionStrategy, make, problem) -> None:
    torch.manual_seed(0)
    optimizer = make()
    phi = dict(optimizer.named_parameters())
    carry, at_start = estimator.start(optimizer, problem), start(optimizer, problem)
    for w in range(2):
        estimate = estimator(Window(optimizer, phi, problem, carry, w * 3, K, OBJECTIVES["mean_log_loss"]))
        carry = estimate.carry
        assert estimate.losses.shape == (3, 2) and torch.isfinite(estimate.losses).all()
        assert all(torch.isfinite(g).all() for g in estimate.gradient.values())
        assert any(g.abs().max() > 0 for g in estimate.gradient.values())
    flat = carry.params.flat if isinstance(estimator, ES) else carry.params.flat[:, 0]
    assert not torch.equal(flat, at_start.params.flat)


@every_strategy
@every_noise
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("activation", ["sigmoid", ["relu", "tanh"]], ids=["mlp", "mixed"])
def test_three_steps_of_mnist(make_estimator, noise, make, activation, mnist_root: Path):
    task = ImageClassification(hidden_sizes=(4,), activation=activation, batch_size=8, data_dir=mnist_root)
    problem = task.sample(ProblemKeys(0, "train", 0, range(2)))
    check_three_steps(make_estimator(noise=noise), make, problem)


@every_noise
@pytest.mark.parametrize("make_estimator", [ES, PES])
def test_three_steps_of_any_module(make_estimator, noise, mnist_root: Path):
    task = ImageClassification(model=Small, batch_size=8, data_dir=mnist_root)
    problem = task.sample(ProblemKeys(0, "train", 0, range(2)))
    check_three_steps(make_estimator(noise=noise), OPTIMIZERS["port_hamiltonian"], problem)
    check_three_steps(make_estimator(noise=noise), OPTIMIZERS["adam"], rescaled(problem, 0.5))


@pytest.mark.parametrize(("make", "message"), [
    (lambda: PES(sigma=0), "estimator.sigma=0: must be > 0"),
    (lambda: ES(sigma=float("inf")), "estimator.sigma=inf: must be > 0 and finite"),
    (lambda: ESSingle(num_pairs=0), "estimator.num_pairs=0: must be a whole number >= 1"),
    (lambda: ES(num_pairs=1.5), "estimator.num_pairs=1.5: must be a whole number >= 1"),
    (lambda: NRES(noise="own"), "estimator.noise=own: must be shared or per_problem"),
    (lambda: NRES(reuse=4).window_length(3, 12), "estimator.reuse=4: must be a multiple of meta.truncation=3"),
    (lambda: NRES(reuse=0), "estimator.reuse=0: must be >= 1"),
    (lambda: Full(order=3), "estimator.order=3: must be 1"),
])  # fmt: skip
def test_arguments_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
