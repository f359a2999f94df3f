"""Every estimator against what its paper says it estimates, on a problem with a closed form."""

import json
import sys

import _closed_form as closed
import estimator_bias
import pytest
import torch

from ph_l2o.estimators import ES, NRES, OBJECTIVES, PES, ESSingle, Full, Truncated
from ph_l2o.inner import run

SIGMA = 0.3  # large enough that the smoothed gradients differ from the exact ones
MEAN = OBJECTIVES["mean_loss"]
PAIRS, PROBLEMS = {"per_problem": 1, "shared": 256}, {"per_problem": 256, "shared": 1}


def windows(estimator, num_problems: int = 1, episode: int = 0) -> torch.Tensor:
    """The meta-gradient of each window of an episode."""
    optimizer, phi = closed.optimizer(), closed.phi()
    problem = closed.problem(num_problems, episode)
    carry, found = estimator.start(optimizer, problem), []
    for w in range(closed.HORIZON // estimator.truncation):
        estimate = estimator(optimizer, phi, problem, carry, w * estimator.truncation, MEAN)
        carry = estimate.carry
        found.append(estimate.gradient["log_lr"])
    return torch.stack(found)


def samples(estimator, count: int = 50, num_problems: int = 256) -> torch.Tensor:
    """Independent meta-gradients of each window, `(count, windows)`."""
    return torch.stack([windows(estimator, num_problems, episode) for episode in range(count)])


def assert_mean(found: torch.Tensor, expected: float) -> None:
    error = found.std() / len(found) ** 0.5
    assert abs(found.mean() - expected) < 3 * error
    assert 3 * error < 0.2 * abs(expected), "too few samples to tell anything"


@pytest.mark.parametrize("estimator", [Full(closed.HORIZON), Full().for_horizon(closed.HORIZON)], ids=["given", "made"])
def test_full_is_the_closed_form(estimator):
    (found,) = windows(estimator)
    assert found.item() == pytest.approx(closed.full_gradient(), rel=1e-9)


def test_full_matches_finite_differences():
    optimizer, problem, eps = closed.optimizer(), closed.problem(), 1e-5
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            optimizer.log_lr.fill_(closed.LOG_LR + sign * eps)
        ends.append(MEAN(run(optimizer, problem, closed.HORIZON)[1][1:]).item())
    (found,) = windows(Full(closed.HORIZON))
    assert found.item() == pytest.approx((ends[0] - ends[1]) / (2 * eps), rel=1e-8)


def test_full_of_first_order_is_that_of_truncated():
    assert torch.equal(windows(Full(closed.HORIZON, order=1)), windows(Truncated(closed.HORIZON, order=1)))


def test_bias_of_truncated_is_the_predicted_one():
    found = windows(Truncated(closed.K))
    assert found.tolist() == pytest.approx(closed.truncated_gradients(), rel=1e-9)
    bias = found.mean().item() - closed.full_gradient()
    assert bias == pytest.approx(sum(closed.truncated_gradients()) / closed.WINDOWS - closed.full_gradient(), rel=1e-9)
    assert abs(bias) > 0.3 * abs(closed.full_gradient())


@pytest.mark.parametrize("noise", ["per_problem", "shared"])
def test_es_estimates_the_smoothed_truncated_gradient(noise):
    found = samples(ES(closed.K, sigma=SIGMA, noise=noise, num_pairs=PAIRS[noise]), num_problems=PROBLEMS[noise])
    for w, expected in enumerate(closed.smoothed_truncated(SIGMA)):
        assert_mean(found[:, w], expected)


def test_es_of_one_window_has_no_bias():
    assert_mean(samples(ES(closed.HORIZON, sigma=SIGMA))[:, 0], closed.smoothed_full(SIGMA))


@pytest.mark.parametrize("make", [ESSingle, NRES])
def test_one_perturbation_estimates_the_smoothed_full_gradient(make):
    found = samples(make(closed.K, sigma=SIGMA))
    assert_mean(found.mean(1), closed.smoothed_full(SIGMA))
    assert closed.smoothed_full(SIGMA) != pytest.approx(closed.full_gradient(), rel=0.02)


@pytest.mark.parametrize("noise", ["per_problem", "shared"])
def test_pes_estimates_the_gradient_smoothed_by_each_window_of_its_own(noise):
    found = samples(PES(closed.K, sigma=SIGMA, noise=noise, num_pairs=PAIRS[noise]), num_problems=PROBLEMS[noise])
    assert_mean(found.mean(1), closed.smoothed_per_window(SIGMA))


def test_the_smoothing_vanishes_with_sigma():
    exact = closed.full_gradient()
    assert closed.smoothed_full(1e-3) == pytest.approx(exact, rel=1e-5)
    assert closed.smoothed_per_window(1e-3) == pytest.approx(exact, rel=1e-5)
    assert_mean(samples(PES(closed.K, sigma=1e-3)).mean(1), exact)
    assert_mean(samples(ESSingle(closed.K, sigma=1e-3)).mean(1), exact)


def test_pes_corrects_the_bias_of_es():
    """With several windows only; in the first window they are the same."""
    es, pes = ES(closed.K, sigma=1e-3), PES(closed.K, sigma=1e-3)
    a, b = samples(es), samples(pes)
    torch.testing.assert_close(a[:, 0], b[:, 0])
    gap = b.mean(1).mean() - a.mean(1).mean()
    error = ((a.mean(1).var() + b.mean(1).var()) / len(a)).sqrt()
    expected = closed.full_gradient() - sum(closed.truncated_gradients()) / closed.WINDOWS
    assert abs(gap - expected) < 3 * error < 0.2 * abs(expected)


@pytest.mark.parametrize("make", [ES, PES, ESSingle, NRES])
def test_variance_falls_as_one_over_the_number_of_pairs(make):
    one, eight = (samples(make(closed.K, sigma=0.1, num_pairs=n), 100, 16).mean(1).var() for n in (1, 8))
    assert 4 < one / eight < 16


@pytest.mark.parametrize(("make", "name"), [(ES, "es"), (PES, "pes"), (ESSingle, "es_single"), (NRES, "nres")])
def test_variance_of_a_window_is_the_predicted_one(make, name):
    found = samples(make(closed.K, sigma=1e-3), 150, 64).var(0) * 64
    assert found.tolist() == pytest.approx(closed.variances()[name].tolist(), rel=0.4)


def test_reuse_of_noise_has_the_least_variance():
    """Li et al. 2023, by t Σ g² ≥ (Σ g)²."""
    predicted = closed.variances()
    assert (predicted["nres"] <= predicted["pes"] * (1 + 1e-9)).all() and predicted["nres"][-1] < predicted["pes"][-1]


def test_the_ends_of_gpes():
    assert torch.equal(windows(NRES(closed.K), 4), windows(ESSingle(closed.K), 4))
    assert torch.equal(windows(NRES(closed.K, reuse=closed.K), 4), windows(PES(closed.K), 4))
    between = windows(NRES(closed.K, reuse=2 * closed.K), 4)
    assert torch.equal(between[:2], windows(NRES(closed.K), 4)[:2])
    assert not torch.equal(between[2], windows(NRES(closed.K), 4)[2])


def test_the_benchmark_makes_its_table(tmp_path, monkeypatch, capsys):
    arguments = ["--truncations", "12", "--episodes", "3", "--json", str(tmp_path / "bias.json")]
    monkeypatch.setattr(sys, "argv", ["estimator_bias.py", *arguments])
    estimator_bias.main()
    rows = json.loads((tmp_path / "bias.json").read_text())["rows"]
    assert [row["estimator"] for row in rows] == ["full", "truncated", "es", "pes", "es_single", "nres"]
    assert rows[0]["bias"] == pytest.approx(0, abs=1e-9) and rows[1]["bias"] < -0.2
    assert "| `truncated` | 2 | -21.2 % | 0 % | 0 % |" in capsys.readouterr().out
