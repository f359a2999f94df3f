from __future__ import annotations

import time

import numpy as np
import pytest

from ph_l2o.evaluation.estimates import (
    bootstrap_means,
    mean,
    paired_difference,
    percentile_interval,
    summarize,
)


def philox(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


@pytest.mark.parametrize("n", [2, 3, 4, 7, 64, 1001])
def test_summary_against_definitions(n: int) -> None:
    values = np.exp(philox(n).standard_normal(n))
    summary = summarize(values)
    ordered = sorted(values)
    cut = n // 4
    assert summary.mean == pytest.approx(sum(values) / n)
    assert summary.median == pytest.approx((ordered[(n - 1) // 2] + ordered[n // 2]) / 2)
    assert summary.geometric_mean == pytest.approx(np.prod(values ** (1 / n)))
    assert summary.iqm == pytest.approx(sum(ordered[cut : n - cut]) / (n - 2 * cut))


def test_geometric_mean_is_clamped_and_left_out() -> None:
    assert summarize([0.0, 1.0]).geometric_mean == pytest.approx(1e-6)
    assert summarize([-1.0, 1.0], can_be_negative=True).geometric_mean is None


def test_infinite_values_stay() -> None:
    summary = summarize([1.0, 1.0, 2.0, 3.0, np.nan])
    assert summary == (np.inf, 2.0, np.inf, 2.0)
    assert summarize([1e308, 1e308, 1e308]).mean == np.inf
    assert summarize([np.inf] * 4) == (np.inf,) * 4


def test_paired_differences_of_infinite_losses() -> None:
    inf = np.inf
    difference = paired_difference([1.0, inf, 1.0, inf], [3.0, 1.0, inf, inf])
    assert difference.tolist() == [-2.0, inf, -inf, 0.0]
    assert np.isnan(mean(difference))
    low, high = percentile_interval(bootstrap_means(difference, philox(0))[:, 0])
    assert (low, high) == (-inf, inf)


def test_bootstrap_means_against_a_loop() -> None:
    values = philox(1).standard_normal((13, 3))
    means = bootstrap_means(values, philox(2), num_resamples=50)
    oracle = philox(2)
    for row in means:
        assert row == pytest.approx(values[oracle.integers(0, 13, size=13)].mean(0))


def test_bootstrap_of_infinite_values() -> None:
    values = np.array([[np.inf, -np.inf], *[[1.0, 1.0]] * 99])
    means = bootstrap_means(values, philox(3))
    share = 1 - 0.99**100  # of resamples that draw the infinite value
    assert np.isposinf(means[:, 0]).mean() == pytest.approx(share, abs=0.05)
    assert (np.isposinf(means[:, 0]) == np.isneginf(means[:, 1])).all()
    assert percentile_interval(means[:, 0]) == (1.0, np.inf)


def test_interval_covers_the_mean_as_often_as_it_should() -> None:
    covered = 0
    for k in range(200):
        values = philox(100 + k).normal(5.0, 2.0, size=80)
        low, high = percentile_interval(bootstrap_means(values, philox(k), num_resamples=400)[:, 0])
        covered += low <= 5.0 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_interval_width_against_the_normal_approximation() -> None:
    values = philox(4).normal(size=2000)
    low, high = percentile_interval(bootstrap_means(values, philox(5))[:, 0])
    error = values.std() / np.sqrt(2000)
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.15 * error)


def test_bootstrap_is_reproducible_and_fast() -> None:
    values = philox(6).standard_normal((20_000, 21))
    begin = time.process_time()
    means = bootstrap_means(values, philox(7))
    assert time.process_time() - begin < 3  # about half a second
    assert means.shape == (2000, 21)
    assert np.array_equal(means[:, 0], bootstrap_means(values, philox(7))[:, 0])
