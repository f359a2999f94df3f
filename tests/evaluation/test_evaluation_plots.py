from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.container import BarContainer

from ph_l2o.evaluation import compare, compare_suite
from ph_l2o.evaluation.estimates import curve
from ph_l2o.evaluation.plots import plot_curves, spread
from ph_l2o.evaluation.suite_plots import plot_profile, plot_ratios, plot_suite_curves
from ph_l2o.tasks.quadratic import Quadratic


def falling(rate: float, *, num_steps: int = 50) -> np.ndarray:
    return np.exp(-rate * np.arange(num_steps + 1))[:, None] * np.linspace(1, 2, 9)


def test_curve_is_of_quartiles() -> None:
    losses = np.stack([np.arange(1.0, 10.0), np.arange(9.0, 0.0, -1.0)])
    median, low, high = curve(losses)
    assert (median.tolist(), low.tolist(), high.tolist()) == ([5, 5], [3, 3], [7, 7])


def test_figure(descent: Any, tmp_path: Path) -> None:
    pyplot = "matplotlib.pyplot" in sys.modules
    found = compare({"a": descent(lr=0.01), "b": descent(lr=1e-3)}, Quadratic(3), horizon=20, num_problems=8)
    path = tmp_path / "curves.png"
    _, axes = found.plot(path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n") and list(tmp_path.iterdir()) == [path]
    assert axes.get_yscale() == "log" and axes.get_xlim() == (0, 20) and axes.get_legend() is None
    assert {note.get_text() for note in axes.texts} == {"a", "b"}
    assert "8 test problems" in axes.get_title(loc="left") and "interquartile" in axes.get_title(loc="left")
    assert len(axes.lines) == 2 and len({line.get_color() for line in axes.lines}) == 2
    assert np.array_equal(axes.lines[0].get_ydata(), found.curves["a"].median)
    assert ("matplotlib.pyplot" in sys.modules) == pyplot  # neither backend nor open figures are touched


@pytest.mark.parametrize("size", [(7.2, 4.3), (4.2, 3.0)])
def test_names_do_not_overlap_and_lie_in_the_figure(size: tuple[float, float]) -> None:
    names = ["sgd", "momentum", "nesterov", "rmsprop", "adam", "adamw", "port_hamiltonian", "lstm"]
    curves = {name: curve(falling(0.1 + 1e-4 * k)) for k, name in enumerate(names)}
    figure, axes = plot_curves(curves, title="t", emphasized=names[-2:], num_problems=9, size=size)
    figure.draw_without_rendering()
    boxes = sorted((text.get_tightbbox() for text in axes.texts), key=lambda box: box.y0)
    extents = sorted((text.get_bbox_patch() or text).get_window_extent().y0 for text in axes.texts)
    assert len(boxes) == 8 and np.diff(extents).min() > 0
    positions = sorted(text.xyann[1] for text in axes.texts)
    height = axes.get_window_extent().height
    assert np.diff(positions).min() * height >= 8.5 / 72 * figure.dpi
    assert max(box.x1 for box in boxes) <= figure.bbox.x1 + 1
    title = axes.get_tightbbox()
    assert title is not None and title.x1 <= figure.bbox.x1 + 1


def test_noise_is_smoothed_and_the_title_says_so() -> None:
    noisy = curve(np.exp(np.random.default_rng(0).normal(size=(401, 9))))
    _, axes = plot_curves({"a": noisy}, title="t", num_problems=9)
    assert np.std(axes.lines[0].get_ydata()[50:]) < 0.6 * np.std(noisy.median[50:])
    assert "running means over 8 steps" in axes.get_title(loc="left").replace("\n", " ")


def test_a_suite_s_figures_have_labels_and_an_interval_on_each_bar(descent: Any) -> None:
    suite = {f"t{k}": (Quadratic(3), 12) for k in range(5)}
    found = compare_suite({"ours": descent(lr=0.01), "adam": "adam"}, suite, num_problems=3)
    curves, ratios, shares = plot_suite_curves(found), plot_ratios(found), plot_profile(found)
    assert [text.get_text() for text in curves.legends[0].get_texts()] == ["ours", "adam"]  # as in the table
    assert len(curves.axes) - sum(axes.get_visible() for axes in curves.axes) <= 1
    assert curves.get_supxlabel() == "inner step" and "median" in curves.get_supylabel()
    for axes in ratios.axes:
        assert "better" in axes.get_xlabel()
        (bars,) = [c for c in axes.containers if isinstance(c, BarContainer)]
        assert len(bars) == 5 and bars.errorbar is not None
        low, high = axes.get_xlim()
        for segment in bars.errorbar.lines[2][0].get_segments():
            assert low <= segment[0][0] <= segment[1][0] <= high
    assert "factor" in shares.axes[0].get_xlabel() and "better" in shares.axes[0].get_ylabel()


@pytest.mark.parametrize("horizon", [12, 200])
def test_the_label_of_one_row_of_tasks_lies_in_the_figure(descent: Any, horizon: int) -> None:
    found = compare_suite({"ours": descent(lr=0.01), "adam": "adam"}, {"t": (Quadratic(3), horizon)}, num_problems=2)
    curves = plot_suite_curves(found)
    curves.draw_without_rendering()
    label = next(text for text in curves.texts if text.get_text() == curves.get_supylabel())
    assert ("smoothed" in label.get_text()) == (horizon == 200)
    (box, legend) = (label.get_window_extent(), curves.legends[0].get_window_extent())
    assert box.y0 >= 0 and box.y1 <= legend.y0


def test_emphasis() -> None:
    curves = {name: curve(falling(rate)) for name, rate in zip("abcde", (0.1, 0.2, 0.3, 0.4, 0.5), strict=True)}
    _, axes = plot_curves(curves, title="t", emphasized=["b"], num_problems=9)
    widths = [line.get_linewidth() for line in axes.lines]
    assert max(widths) == widths[-1] and widths.count(max(widths)) == 1
    assert len(axes.collections) == 1  # the band of b
    assert "interquartile range of b" in axes.get_title(loc="left").replace("\n", " ")


def test_divergence_does_not_press_the_others_together() -> None:
    grown = falling(-0.5)
    grown[40:] = np.inf
    curves = {"good": curve(falling(0.1)), "bad": curve(grown)}
    _, axes = plot_curves(curves, title="t", num_problems=9)
    low, high = axes.get_ylim()
    assert high < 10 and low < np.exp(-5) * 1.5
    assert {note.get_text() for note in axes.texts} == {"good", "bad ↑"}


@pytest.mark.parametrize("losses", [np.zeros((3, 4)), np.full((3, 4), np.inf), np.full((3, 4), -1.0)])
def test_degenerate_losses_are_drawn(losses: np.ndarray) -> None:
    figure, axes = plot_curves({"a": curve(losses)}, title="t", num_problems=4)
    figure.draw_without_rendering()
    assert np.isfinite(axes.get_ylim()).all()


def test_spread() -> None:
    assert spread([0.0, 1.0, 5.0], 1.0) == [0.0, 1.0, 5.0]
    assert spread([1.0, 1.0], 1.0) == [0.5, 1.5]
    positions = spread([0.0, 0.1, 0.15, 0.9, 0.95], 0.1)
    assert np.diff(positions).min() >= 0.1 - 1e-12
    assert spread([], 1.0) == []
