"""Estimates with intervals, against closed forms."""

import math

import numpy as np
import pytest

from ph_l2o.claims import contrasts
from ph_l2o.claims.spec import Contrast
from ph_l2o.errors import ConfigError

RNG = np.random.default_rng(3)


def around(low, value, high):
    return pytest.approx(value, rel=0.12), pytest.approx(value - low, rel=0.12), pytest.approx(high - value, rel=0.12)


def check_normal(estimate, mean, deviation_of_mean):
    """An interval as the normal distribution has it."""
    low, high = estimate["ci95"]
    assert estimate["value"] == pytest.approx(mean)
    assert high - mean == pytest.approx(1.96 * deviation_of_mean, rel=0.12)
    assert mean - low == pytest.approx(1.96 * deviation_of_mean, rel=0.12)


def test_one_training_has_an_interval_over_problems():
    values = RNG.normal(5, 2, (1, 400))
    check_normal(contrasts.mean_estimate(values), values.mean(), values.std(ddof=1) / 20)


def test_a_difference_is_paired():
    """What both have in common is no noise of it."""
    common, noise = RNG.normal(0, 10, (1, 400)), RNG.normal(1, 0.1, (1, 400))
    check_normal(contrasts.difference(common + noise, common), noise.mean(), noise.std(ddof=1) / 20)


def test_a_ratio_is_of_geometric_means():
    other = np.exp(RNG.normal(0, 3, (1, 400)))
    found = contrasts.ratio(other * 0.5, other)
    assert found["value"] == pytest.approx(0.5) and found["ci95"] == pytest.approx([0.5, 0.5])


def test_several_trainings_have_student_s_interval_too():
    """Where problems are all alike, it is Student's alone; 2.776 is the quantile of 4 degrees of freedom."""
    means = np.array([1.0, 1.1, 0.9, 1.2, 0.8])
    found = contrasts.mean_estimate(np.repeat(means[:, None], 50, axis=1))
    reach = 2.776 * means.std(ddof=1) / math.sqrt(5)
    assert found["ci95"] == pytest.approx([1 - reach, 1 + reach])
    problems = RNG.normal(0, 1, 400)  # common to all trainings
    found = contrasts.mean_estimate(means[:, None] + problems)
    both = math.hypot(reach, 1.96 * problems.std(ddof=1) / 20)
    assert found["ci95"][1] - found["value"] == pytest.approx(both, rel=0.08)


def test_five_trainings_are_compared_with_one_row_and_with_five():
    five = np.repeat(np.array([[1.0], [1.1], [0.9], [1.2], [0.8]]), 30, axis=1)
    assert contrasts.difference(five, np.zeros((1, 30)))["value"] == pytest.approx(1)
    assert contrasts.difference(five, five + 1)["ci95"] == pytest.approx([-1, -1])
    with pytest.raises(ConfigError, match="cannot be paired"):
        contrasts.difference(five, np.zeros((2, 30)))


def test_shares_have_wilson_s_interval():
    """Of 256 of 256, its lower end is 1 / (1 + 1.96² / 256)."""
    low, high = contrasts.mean_estimate(np.ones((1, 256)), is_share=True)["ci95"]
    assert low == pytest.approx(1 / (1 + 1.959964**2 / 256)) and high == pytest.approx(1)


def test_the_slope_of_a_power_law():
    noise = np.exp(RNG.normal(0, 0.3, (1, 200)))
    columns = {x: 7 * x**0.4 * noise for x in (10.0, 100.0, 1000.0)}
    found = contrasts.slope_estimate(columns)
    assert found["value"] == pytest.approx(0.4) and found["ci95"] == pytest.approx([0.4, 0.4])
    independent = {x: 7 * x**0.4 * np.exp(RNG.normal(0, 0.3, (1, 200))) for x in columns}
    low, high = contrasts.slope_estimate(independent)["ci95"]
    assert low < 0.4 < high and high - low < 0.1
    assert contrasts.slope_estimate(columns | {1000.0: np.full((1, 200), np.inf)})["value"] == math.inf


def test_medians_and_their_ratio():
    values = RNG.exponential(1, (1, 401))
    found = contrasts.median_estimate(values)
    # of an exponential distribution the sample's median has the deviation 1 / √n
    assert found["ci95"][1] - found["ci95"][0] == pytest.approx(2 * 1.96 / math.sqrt(401), rel=0.4)
    assert contrasts.median_ratio(3 * values, values) == {
        "value": pytest.approx(3), "ci95": [pytest.approx(3), pytest.approx(3)],
    }  # fmt: skip
    never = np.full((1, 401), np.inf)
    assert contrasts.median_ratio(never, never)["value"] == 1
    assert contrasts.median_ratio(never, values)["value"] == math.inf
    assert contrasts.median_ratio(values, never) == {"value": 0, "ci95": [0, 0]}


def test_what_diverged_counts():
    values = np.ones((1, 100))
    values[0, 0] = np.inf
    assert contrasts.difference(values, np.ones((1, 100)))["value"] == math.inf
    assert contrasts.difference(values, values)["ci95"] == [0, 0]
    assert contrasts.median_estimate(values)["value"] == 1
    mixed = np.array([[np.inf, 1.0], [-np.inf, 1.0]])
    assert math.isnan(contrasts.mean_estimate(mixed)["value"])


def contrast(**more):
    plain = {
        "says": "It is better", "measurement": "table", "row": "ours", "side": "below", "against": ("a", "b"),
        "recipe": "fair", "measure": None, "of": ("mean", "geometric_mean"), "headline": False, "across": {},
    }  # fmt: skip
    return Contrast(**plain | more)


def rows(**means):
    noise = np.random.default_rng(0).uniform(0.9, 1.1, (1, 50))
    return {"table": {name: {"final": mean * noise, "other": noise} for name, mean in means.items()}}


def test_of_several_rows_the_best_one_counts():
    values = rows(ours=1.0, a=3.0, b=2.0)
    found = contrasts.contrast_result(contrast(), values, "final")
    assert found["against"] == "b"
    difference, ratio = found["estimates"]
    assert (difference["of"], difference["threshold"], ratio["threshold"]) == ("mean", 0.0, 1.0)
    assert ratio["value"] == pytest.approx(0.5)
    assert contrasts.contrast_result(contrast(side="above"), values, "final")["against"] == "a"


def test_a_number_and_another_measure():
    values = rows(ours=0.1, a=1.0, b=1.0)
    found = contrasts.contrast_result(contrast(against=0.16, of=("mean", "median")), values, "final")
    assert found["against"] is None and [e["threshold"] for e in found["estimates"]] == [0.16, 0.16]
    assert found["estimates"][0]["value"] == pytest.approx(0.1, rel=0.05)
    assert contrasts.contrast_result(contrast(measure="other"), values, "final")["estimates"][0]["value"] == 0
    with pytest.raises(ConfigError, match="measure=accuracy: ours has no such measure; there are final, other"):
        contrasts.contrast_result(contrast(measure="accuracy"), values, "final")


def test_the_noise_of_a_published_mean():
    assert contrasts.spread_of_means(np.array([0.0, 2.0] * 50)) == pytest.approx(0.1, rel=0.01)
