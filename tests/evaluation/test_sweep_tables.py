"""Means over seeds, tables that fit a terminal, and pictures of sweeps."""

import itertools
import math

import pytest

from ph_l2o.evaluation.sweep_plots import plot_sweep
from ph_l2o.evaluation.sweep_tables import jobs_table, mean_interval, over_seeds, quantile, seeds_table


def rows_of(**values):
    keys = list(values)
    return [
        {"job": f"{k}_x", **dict(zip(keys, point, strict=True)), "status": "ok", "mean": 1.0 + k, "seconds": 1.5}
        for k, point in enumerate(itertools.product(*values.values()))
    ]


def test_quantiles_are_students():
    """Published ones, and the expansion beyond the table."""
    for degrees, value in {1: 12.7062, 2: 4.3027, 10: 2.2281, 30: 2.0423, 31: 2.0395, 60: 2.0003, 1000: 1.9623}.items():
        assert quantile(degrees) == pytest.approx(value, abs=1e-4)


def test_an_interval_of_three_values():
    mean, low, high = mean_interval([1.0, 2.0, 6.0])
    half = 4.3027 * math.sqrt(7.0 / 3)
    assert (mean, low, high) == pytest.approx((3.0, 3.0 - half, 3.0 + half), rel=1e-4)
    assert math.isnan(mean_interval([1.0])[1]) and mean_interval([1.0, math.inf])[0] == math.inf


def test_each_setting_has_a_mean_over_its_seeds():
    rows = rows_of(optimizer=("a", "b"), seed=("1", "2", "3"))
    rows[1] |= {"status": "diverged", "mean": None}
    first, second = over_seeds(rows, ["optimizer", "seed"])
    assert (first["optimizer"], first["seeds"], first["ok"], first["mean"]) == ("a", 3, 2, 2.0)
    assert (second["ok"], second["mean"]) == (3, 5.0)
    assert second["mean_high"] - second["mean"] == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert over_seeds(rows, ["optimizer"]) is None


@pytest.mark.parametrize("keys", [1, 3, 8])
def test_tables_fit_eighty_columns(keys):
    swept = [f"meta.some_long_key_{k}" for k in range(keys)]
    rows = rows_of(**{key: (f"value_{k}_{'x' * 30}", "b") if k < 2 else ("1e-3",) for k, key in enumerate(swept)})
    rows[-1] |= {"status": "killed", "mean": None}
    settings = over_seeds([row | {"seed": "1"} for row in rows], [*swept, "seed"])
    for text in (jobs_table(rows, swept), seeds_table(settings)):
        assert max(map(len, text.splitlines())) <= 80
    lines = jobs_table(rows, swept).splitlines()
    assert len(lines) == len(rows) + 1 and "killed" in lines[-1] and "status" in lines[0]


def test_keys_with_the_same_last_part_stay_whole():
    header = jobs_table(
        rows_of(**{"meta.lr": ("1",), "optimizer.lr": ("2",), "task.dim": ("3",)}),
        ["meta.lr", "optimizer.lr", "task.dim"],
    )
    assert header.splitlines()[0].split()[:4] == ["job", "meta.lr", "optimizer.lr", "dim"]


@pytest.mark.parametrize("swept", [
    {"seed": ("1", "2")}, {"meta.lr": ("0.1", "1", "0.001")}, {"optimizer": ("sgd", "adam"), "seed": ("1", "2")},
    {"optimizer": ("sgd", "adam"), "meta.lr": ("0.1", "1"), "seed": ("1", "2")},
    {"optimizer": ("sgd", "adam"), "meta.lr": ("0.1", "1"), "meta.clip": ("1", "2")},
])  # fmt: skip
def test_pictures(swept):
    rows = rows_of(**swept)
    for row in rows[1:2]:
        row |= {"status": "diverged", "mean": None}
    picture = plot_sweep(rows, list(swept))
    assert picture.startswith(b"\x89PNG")
    better = [row | {"mean": row["mean"] and 3 * row["mean"] + 1} for row in rows]
    assert plot_sweep(better, list(swept)) != picture


@pytest.mark.parametrize("keys", [1, 2, 3])
@pytest.mark.parametrize("value", ["a$_{$", r"$\frac$", "日本語", "x" * 300, "two\nlines", ""])
def test_any_value_is_shown(value, keys):
    """None is read as a formula, none leaves the picture without room, none breaks a line of the table."""
    rows = rows_of(**{f"key{k}": (value, "b") for k in range(keys)})
    swept = [f"key{k}" for k in range(keys)]
    assert plot_sweep(rows, swept).startswith(b"\x89PNG")
    assert len(jobs_table(rows, swept).splitlines()) == len(rows) + 1


@pytest.mark.parametrize("factor", [2.0, 1e30])
def test_results_far_apart_are_all_seen(factor):
    rows = [row | {"mean": factor**k} for k, row in enumerate(rows_of(**{"meta.lr": ("1", "2", "3")}))]
    axes = drawn_figure(rows).axes[0]
    assert axes.get_yscale() == ("linear" if factor == 2 else "log")
    low, high = axes.get_ylim()
    assert low < 1 < factor**2 < high
    assert all(tick == int(tick) for tick in axes.get_xticks())


def drawn_figure(rows):
    figures = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ph_l2o.evaluation.sweep_plots.to_png", lambda figure: figures.append(figure) or b"")
        plot_sweep(rows, ["meta.lr"])
    return figures[0]


def test_without_results_there_is_no_picture():
    rows = rows_of(seed=("1", "2"))
    assert plot_sweep([row | {"status": "error", "mean": None} for row in rows], ["seed"]) is None
    assert plot_sweep(rows, []) is None
