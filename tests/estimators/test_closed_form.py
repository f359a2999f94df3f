"""Every estimator against what its paper says it estimates, on a problem with a closed form."""

import json
import sys

import _closed_form as closed
import estimator_bias
import pytest
import torch

from ph_l2o.estimators import ES, NRES, OBJECTIVES, PES, ESSingle, Forward, Full, Truncated
from ph_l2o.inner import Window, run

SIGMA = 0.3  # large enough that the smoothed gradients differ from the exact ones
MEAN = OBJECTIVES["mean_loss"]
DRAWS = 256  # perturbations of an episode; many pairs of few problems are cheaper than one of each of many
PAIRS, PROBLEMS = {"per_problem": 8, "shared": DRAWS}, {"per_problem": DRAWS // 8, "shared": 1}
RANDOM = {"es": ES, "pes": PES, "es_single": ESSingle, "forward": Forward}  # NRES: see test_the_ends_of_gpes
every_noise = pytest.mark.parametrize("noise", ["per_problem", "shared"])


def windows(
    estimator, num_problems: int = 1, episode: int = 0, truncation: int = closed.K, horizon: int = closed.HORIZON
) -> torch.Tensor:
    """The meta-gradient of each window of an episode."""
    optimizer, phi = closed.optimizer(), closed.phi()
    problem = closed.problem(num_problems, episode)
    carry, found = estimator.start(optimizer, problem), []
    count = estimator.window_length(truncation, horizon)
    for first in range(0, horizon, count):
        estimate = estimator(Window(optimizer, phi, problem, carry, first, count, MEAN))
        carry = estimate.carry
        found.append(estimate.gradient["log_lr"])
    return torch.stack(found)


def make(kind, sigma: float, noise: str = "per_problem", pairs: int | None = None):
    """An evolution strategy, or `Forward` with as many directions as pairs."""
    pairs = pairs or PAIRS[noise]
    if kind is Forward:
        return Forward(num_directions=pairs, noise=noise)
    return kind(sigma=sigma, num_pairs=pairs, noise=noise)


def samples(estimator, count: int = 50, num_problems: int = PROBLEMS["per_problem"], **window: int) -> torch.Tensor:
    """Independent meta-gradients of each window, `(count, windows)`."""
    return torch.stack([windows(estimator, num_problems, episode, **window) for episode in range(count)])


def assert_mean(found: torch.Tensor, expected: float) -> None:
    error = found.std() / len(found) ** 0.5
    assert abs(found.mean() - expected) < 3 * error
    assert 3 * error < 0.2 * abs(expected), "too few samples to tell anything"


def test_full_is_the_closed_form():
    (found,) = windows(Full())
    assert found.item() == pytest.approx(closed.full_gradient(), rel=1e-9)


def test_full_matches_finite_differences():
    optimizer, problem, eps = closed.optimizer(), closed.problem(), 1e-5
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            optimizer.log_lr.fill_(closed.LOG_LR + sign * eps)
        ends.append(MEAN(run(optimizer, problem, closed.HORIZON)[1][1:]).item())
    (found,) = windows(Full())
    assert found.item() == pytest.approx((ends[0] - ends[1]) / (2 * eps), rel=1e-8)


def test_full_of_first_order_is_that_of_truncated():
    assert torch.equal(windows(Full(order=1)), windows(Truncated(order=1), truncation=closed.HORIZON))


def test_bias_of_truncated_is_the_predicted_one():
    found = windows(Truncated())
    assert found.tolist() == pytest.approx(closed.truncated_gradients(), rel=1e-9)
    bias = found.mean().item() - closed.full_gradient()
    assert bias == pytest.approx(sum(closed.truncated_gradients()) / closed.WINDOWS - closed.full_gradient(), rel=1e-9)
    assert abs(bias) > 0.3 * abs(closed.full_gradient())


def test_forward_with_all_directions_is_the_closed_form():
    """The sum over windows, and each window with all that led to it."""
    found = windows(Forward())
    assert found.mean().item() == pytest.approx(closed.full_gradient(), rel=1e-13)
    assert found.mean().item() == pytest.approx(windows(Full()).item(), rel=1e-13)
    assert found.tolist() == pytest.approx(closed.jacobian().sum(1).tolist(), rel=1e-7)
    assert abs(closed.jacobian().diagonal()[-1]) < 0.5 * abs(found[-1])  # most comes from the windows before


@every_noise
def test_forward_with_random_directions_estimates_the_full_gradient(noise):
    found = samples(make(Forward, 0, noise=noise), num_problems=PROBLEMS[noise])
    assert_mean(found.mean(1), closed.full_gradient())


@every_noise
def test_es_estimates_the_smoothed_truncated_gradient(noise):
    found = samples(make(ES, SIGMA, noise=noise), num_problems=PROBLEMS[noise])
    for w, expected in enumerate(closed.smoothed_truncated(SIGMA)):
        assert_mean(found[:, w], expected)


def test_es_of_one_window_has_no_bias():
    assert_mean(samples(make(ES, SIGMA), truncation=closed.HORIZON)[:, 0], closed.smoothed_full(SIGMA))


@pytest.mark.parametrize("kind", [ESSingle, NRES])
def test_one_perturbation_estimates_the_smoothed_full_gradient(kind):
    assert_mean(samples(make(kind, SIGMA)).mean(1), closed.smoothed_full(SIGMA))
    assert closed.smoothed_full(SIGMA) != pytest.approx(closed.full_gradient(), rel=0.02)


@every_noise
def test_pes_estimates_the_gradient_smoothed_by_each_window_of_its_own(noise):
    found = samples(make(PES, SIGMA, noise=noise), num_problems=PROBLEMS[noise])
    assert_mean(found.mean(1), closed.smoothed_per_window(SIGMA))


def test_the_smoothing_vanishes_with_sigma():
    exact = closed.full_gradient()
    assert closed.smoothed_full(1e-3) == pytest.approx(exact, rel=1e-5)
    assert closed.smoothed_per_window(1e-3) == pytest.approx(exact, rel=1e-5)
    assert_mean(samples(make(PES, 1e-3)).mean(1), exact)
    assert_mean(samples(make(ESSingle, 1e-3)).mean(1), exact)


def test_pes_corrects_the_bias_of_es():
    """With several windows only; in the first window they are the same."""
    a, b = samples(make(ES, 1e-3)), samples(make(PES, 1e-3))
    torch.testing.assert_close(a[:, 0], b[:, 0])
    gap = b.mean(1).mean() - a.mean(1).mean()
    error = ((a.mean(1).var() + b.mean(1).var()) / len(a)).sqrt()
    expected = closed.full_gradient() - sum(closed.truncated_gradients()) / closed.WINDOWS
    assert abs(gap - expected) < 3 * error < 0.2 * abs(expected)


@pytest.mark.parametrize("name", RANDOM)
def test_variance_is_the_predicted_one_and_falls_as_one_over_the_number_of_draws(name):
    """With 4 and 32 draws for each of 8 problems.

    Three standard errors of a sample variance of 60 such means, of squares of normal numbers, are 60 % (excess kurtosis
    12 / 32); those of the logarithm of the ratio of two are 0.82, a factor of 2.3.
    """
    few, many = (samples(make(RANDOM[name], 1e-3, pairs=n), 60, 8) for n in (4, 32))
    predicted = (closed.variances()[name] / 8).tolist()
    assert (4 * few.var(0)).tolist() == pytest.approx(predicted, rel=0.6)
    assert (32 * many.var(0)).tolist() == pytest.approx(predicted, rel=0.6)
    assert 8 / 2.3 < few.mean(1).var() / many.mean(1).var() < 8 * 2.3


def test_reuse_of_noise_has_the_least_variance():
    """Li et al. 2023, by t Σ g² ≥ (Σ g)²."""
    predicted = closed.variances()
    assert (predicted["nres"] <= predicted["pes"] * (1 + 1e-9)).all() and predicted["nres"][-1] < predicted["pes"][-1]


def test_the_ends_of_gpes():
    assert torch.equal(windows(NRES(), 4), windows(ESSingle(), 4))
    assert torch.equal(windows(NRES(reuse=closed.K), 4), windows(PES(), 4))
    between = windows(NRES(reuse=2 * closed.K), 4)
    assert torch.equal(between[:2], windows(NRES(), 4)[:2])
    assert not torch.equal(between[2], windows(NRES(), 4)[2])


def test_the_benchmark_makes_its_table(tmp_path, monkeypatch, capsys):
    arguments = ["--truncations", "12", "--episodes", "30", "--json", str(tmp_path / "bias.json"), "--plot"]
    monkeypatch.setattr(sys, "argv", ["estimator_bias.py", *arguments, str(tmp_path / "bias.png")])
    estimator_bias.main()
    rows = json.loads((tmp_path / "bias.json").read_text())["rows"]
    assert [row["estimator"] for row in rows] == ["full", *estimator_bias.contestants(0.01)]
    found = {row["estimator"]: row for row in rows}
    assert found["truncated"]["bias"] < -0.2
    assert 1 < found["forward, 1 direction"]["deviation"] < 2  # √2 of one draw, for a scalar
    for name in ("full", "forward"):
        assert found[name]["bias"] == pytest.approx(0, abs=1e-9) and found[name]["deviation"] == 0
    assert "| `truncated` | 2 | -21.2 % | 0 % | 0 % |" in capsys.readouterr().out
    assert (tmp_path / "bias.png").read_bytes().startswith(b"\x89PNG")
    numbers = {(row["estimator"], row["truncation"]): row for row in rows}
    for axes, key in zip(estimator_bias.plot(numbers, 24)[1], ("bias", "deviation"), strict=True):
        _, labels = axes.get_legend_handles_labels()
        assert set(labels) == set(found)
        drawn = [line.get_ydata()[0] for line in axes.lines if len(line.get_xdata()) == 1 and line.get_marker() == "D"]
        assert drawn == [100 * found["forward"][key]]
