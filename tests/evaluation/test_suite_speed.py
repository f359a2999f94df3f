"""Speed-ups, performance profiles and held-out ratios, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ph_l2o.evaluation import compare_suite
from ph_l2o.evaluation.suite_outcome import SuiteOutcome, TaskOutcome
from ph_l2o.evaluation.suite_plots import plot_profile, profile
from ph_l2o.evaluation.suite_runs import Run, cached_run, places, smoothed
from ph_l2o.evaluation.suite_speed import speed_ups

T = 20


def made(curve: Any, *, diverged: bool = False, problems: int = 2) -> Run:
    """A run whose smoothed loss at steps 1 … T is `curve`, on each problem the same."""
    values = np.repeat(np.asarray(curve, float)[:, None], problems, 1)
    flags = np.full(problems, diverged)
    return Run(values[-1], np.full(problems, 100.0), flags, None, values, {}, 1, 0.0)  # type: ignore[arg-type]


def speeds(**runs: Run) -> dict[str, Any]:
    return speed_ups(runs, "reference", T, {name: np.random.default_rng(0) for name in runs})


FALLING = np.linspace(20, 1, T)  # 20 at step 1, 1 at step 20


def test_steps_to_the_references_final_loss():
    found = speeds(reference=made(FALLING), fast=made(np.maximum(FALLING - 15, 0.5)), same=made(FALLING))
    assert found["fast"].steps == 5 and found["fast"].ratio.value == T / 5
    assert found["fast"].ratio.ci95 == (4, 4)
    assert (found["same"].steps, found["same"].ratio.value) == (T, 1)


def test_one_that_is_never_there_is_as_slow_as_the_reference_was_fast():
    slow = made(np.maximum(FALLING, 6))  # the reference is at 6 after 15 steps
    found = speeds(reference=made(FALLING), slow=slow)
    assert found["slow"].steps is None and found["slow"].ratio.value == 15 / T
    mirrored = speed_ups({"reference": slow, "ours": made(FALLING)}, "reference", T, _generators("reference", "ours"))
    assert mirrored["ours"].ratio.value == pytest.approx(T / 15), "the two are each other's inverse"


def _generators(*names: str) -> dict[str, np.random.Generator]:
    return {name: np.random.default_rng(0) for name in names}


def test_a_rise_after_that_takes_nothing_back_but_divergence_all():
    back = np.where(np.arange(T) == 9, 0.5, 50.0)
    found = speeds(reference=made(FALLING), back=made(back), gone=made(FALLING - 15, diverged=True))
    assert (found["back"].steps, found["back"].ratio.value) == (10, 2)
    assert found["gone"].ratio == (0, (0, 0)) and found["gone"].steps is None


def test_intervals_are_over_problems():
    steps = np.arange(1, T + 1)
    values = np.stack([np.where(steps >= k, 0.0, 2.0) for k in (4, 10)], 1)  # each problem is there at another step
    run = Run(values[-1], np.full(2, 9.0), np.zeros(2, bool), None, values, {}, 1, 0.0)  # type: ignore[arg-type]
    found = speeds(reference=made(np.where(steps >= T, 0.5, 3.0)), ours=run)
    assert found["ours"].ratio.value == 2 and found["ours"].ratio.ci95 == (2, 5)


def test_smoothed_losses_are_means_over_a_tenth():
    losses = np.arange(301.0)[:, None]
    assert list(places(300)) == list(range(3, 301, 3)) and list(places(7)) == list(range(1, 8))
    found = smoothed(losses, 300)
    assert found.shape == (100, 1)
    assert found[0, 0] == np.mean([1, 2, 3]) and found[-1, 0] == np.arange(271, 301).mean()
    assert np.isinf(smoothed(np.where(losses == 50, np.inf, losses), 300)[:, 0]).sum() == 10


def test_performance_profile_by_hand():
    runs = {
        "a": {"ours": made([1.0]), "other": made([2.0])},
        "b": {"ours": made([6.0]), "other": made([2.0])},
        "c": {"ours": made([1.0]), "other": made([0.5], diverged=True)},
    }
    tasks = {name: TaskOutcome(1, by_name, {}, None, {}) for name, by_name in runs.items()}
    outcome = SuiteOutcome("suite", tasks, 3, {"ours": "learned", "other": "baseline"}, {})
    found = profile(outcome)
    assert found["ours"].tolist() == pytest.approx([1, 1, 3]) and found["other"].tolist() == [1, 2, np.inf]
    (axes,) = plot_profile(outcome).axes
    shares = {line.get_label(): (line.get_xdata(), line.get_ydata()) for line in axes.get_lines()}
    at_two = {name: y[np.asarray(x) <= 2][-1] for name, (x, y) in shares.items()}
    assert at_two == pytest.approx({"ours": 2 / 3, "other": 2 / 3})
    assert profile(SuiteOutcome("suite", {}, 3, {"ours": "learned"}, {})) == {}


def test_held_out_ratios_are_of_the_test_loss(bowl, descent, tmp_path):
    class Shown(bowl):  # a task that has no test loss beside one that has
        def sample(self, *arguments: Any, **settings: Any) -> Any:
            problem = super().sample(*arguments, **settings)
            problem.test_metrics = lambda params, buffers: {}
            return problem

    suite = {"bowl": (bowl(), 10), "shown": (Shown(noise=0.01, name="shown"), 10)}
    settings = {"num_problems": 3, "reference": "sgd", "cache_dir": tmp_path}
    made = [compare_suite({"ours": descent(lr=0.2), "sgd": "sgd"}, suite, **settings) for _ in range(2)]
    rows = {(row["task"], row["optimizer"]): row for row in made[0].rows}
    ours, sgd = rows["bowl", "ours"], rows["bowl", "sgd"]
    expected = np.mean(sgd["held_out_losses"]) / np.mean(ours["held_out_losses"])
    assert ours["held_out_ratio"]["ratio"] == pytest.approx(expected)
    assert 0 < ours["accuracy"] <= 1 and rows["shown", "ours"]["held_out_loss"] is None
    assert "held_out_ratio" not in rows["shown", "ours"] and "speed_up" in rows["shown", "ours"]
    assert made[0].summary["ours"]["held_out"].num_tasks == 1 and made[0].summary["ours"]["speed_up"].num_tasks == 2
    assert list(made[0].summary["ours"]) == ["sgd", "best_baseline", "held_out", "speed_up"]
    assert "held-out loss at the end" in str(made[0]) and "ms/step" in str(made[0])
    for path in made[0].plot(tmp_path):
        assert path.read_bytes().startswith(b"\x89PNG")
    frame = made[0].to_frame()
    assert {"held_out_loss", "held_out_ratio", "held_out_ratio_low", "speed_up", "steps_to_reference"} <= set(frame)
    again = [{k: v for k, v in row.items() if k != "step_seconds"} for row in made[1].rows]
    assert again == [{k: v for k, v in row.items() if k != "step_seconds"} for row in made[0].rows], "from the cache"


def test_a_run_with_few_rows_at_the_end_diverges_by_its_last_tenth(bowl, descent):
    how: dict[str, Any] = {"num_problems": 2, "seed": 0, "cache_dir": None, "label": "x", "device": "cpu"}
    fine = cached_run(descent(lr=0.1), bowl(noise=0.5), 50, dtype=torch.float32, chunk=None, **how)
    assert not fine.diverged.any()
    wild = cached_run(descent(lr=100.0), bowl(), 50, dtype=torch.float32, chunk=None, **how)
    assert wild.diverged.all()
