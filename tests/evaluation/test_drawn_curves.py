import csv
from pathlib import Path

import numpy as np

from ph_l2o.evaluation.drawn_curves import drawn, running_mean, smoothing, write_curves
from ph_l2o.evaluation.estimates import curve


def test_running_mean_ends_at_each_step_and_forgets_a_spike() -> None:
    values = np.array([3.0, 1.0, 1e30, 0.1, 0.2, 0.3, np.inf])
    means = running_mean(values, 3)
    np.testing.assert_allclose(means[[0, 1, 5]], [3.0, 2.0, 0.2])
    assert means[6] == np.inf


def test_short_curves_are_drawn_as_they_are() -> None:
    few = curve(np.random.default_rng(0).random((200, 3)))  # 199 steps
    assert smoothing(199) == 1 and drawn(few) is few and smoothing(200) == 4


def test_the_file_has_what_is_drawn(tmp_path: Path) -> None:
    long = curve(np.linspace(2, 1, 1001)[:, None] * np.array([1.0, 2.0, np.inf]))
    short = curve(np.ones((3, 2)))
    write_curves(tmp_path / "c.csv", {("task", "a"): long, ("task", "b"): short}, ("task", "optimizer"))
    with (tmp_path / "c.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    a = [row for row in rows if row["optimizer"] == "a"]
    assert len(a) == 251 and (a[0]["step"], a[-1]["step"]) == ("0", "1000") and len(rows) == 254
    assert float(a[-1]["median"]) == float(f"{drawn(long).median[-1]:.5g}") and a[-1]["high"] == "inf"
