from __future__ import annotations

import csv
import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from ph_l2o.evaluation import SuiteComparison, SuiteTask, compare_suite, grid_search, suite_runs, tuning
from ph_l2o.evaluation.runner import evaluate_optimizer
from ph_l2o.evaluation.suite_comparison import rates
from ph_l2o.evaluation.suite_ratios import interquartile_mean, summarize_ratios, task_ratios
from ph_l2o.evaluation.suite_runs import Run, cached_run
from ph_l2o.optimizers.classical import Adam

SIZES = {"num_problems": 4, "tuning_problems": 2}


@pytest.fixture
def suite(bowl: Any) -> dict[str, SuiteTask]:
    return {"bowl": SuiteTask(bowl(), 10), "noisy": SuiteTask(bowl(noise=0.01), 30)}


@pytest.fixture
def optimizers(descent: Any) -> dict[str, Any]:
    return {"ours": descent(lr=0.2), "adam": "adam", "sgd": "sgd"}


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counts what is not read from the cache."""
    counts = {"tuned": 0, "run": 0}
    search, evaluate = grid_search.GridSearch.search, suite_runs.evaluate_optimizer

    def counted_search(self: Any, grid: Any) -> bool:
        counts["tuned"] += 1
        return search(self, grid)

    def counted_run(*arguments: Any, **settings: Any) -> Any:
        counts["run"] += 1
        return evaluate(*arguments, **settings)

    monkeypatch.setattr(grid_search.GridSearch, "search", counted_search)
    monkeypatch.setattr(suite_runs, "evaluate_optimizer", counted_run)
    return counts


def numbers(comparison: SuiteComparison) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "step_seconds"} for row in comparison.rows]


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


def test_ratios_of_means_by_hand():
    losses = {"ours": np.array([1.0, 3.0]), "adam": np.array([2.0, 4.0]), "sgd": np.array([1.0, 1.0])}
    references = {"adam": losses["adam"], "sgd": losses["sgd"]}
    best, ratios, _ = task_ratios(losses, references, "adam", generator())
    assert best == "sgd"
    assert ratios["ours"]["adam"].value == pytest.approx(3 / 2)
    assert ratios["ours"]["best_baseline"].value == pytest.approx(1 / 2)
    assert ratios["sgd"]["adam"].value == pytest.approx(3)
    # With two problems the resamples are (1, 1), (1, 3), (3, 1) and (3, 3) of ours, with 2, 3, 3 and 4 of Adam's.
    assert ratios["ours"]["adam"].ci95 == pytest.approx((4 / 3, 2))


def test_interquartile_mean_over_tasks_by_hand():
    assert interquartile_mean(np.array([100.0, 2.0, 3.0, 0.0])) == 2.5
    assert interquartile_mean(np.array([1.0, 2.0, 6.0])) == 3.0  # a quarter of three is none
    ratios, draws = {}, {}
    for task, reference in (("a", 1.0), ("b", 2.0), ("c", 3.0), ("d", 100.0)):
        losses = {"ours": np.ones(3), "adam": np.full(3, reference)}
        _, ratios[task], draws[task] = task_ratios(losses, {"adam": losses["adam"]}, "adam", generator())
    summary = summarize_ratios(ratios, draws)["ours"]["adam"]
    assert (summary.iqm, summary.worst, summary.worst_task, summary.better) == (2.5, 1.0, "a", 3)
    assert summary.ci95 == pytest.approx((2.5, 2.5))


def test_without_the_reference_or_any_baseline():
    losses = {"ours": np.ones(2), "sgd": np.ones(2)}
    _, ratios, _ = task_ratios(losses, {"sgd": losses["sgd"]}, "adam", generator())
    assert set(ratios["ours"]) == {"best_baseline"}
    assert task_ratios(losses, {}, "adam", generator())[:2] == (None, {"ours": {}, "sgd": {}})


def test_a_suite_is_the_ratio_of_the_last_tenth_of_the_steps(suite, optimizers):
    comparison = compare_suite(optimizers, suite, **SIZES)
    tuned = tuning.tune("adam", suite["noisy"].task, horizon=30, num_problems=2, seed=0, grid=rates("adam"))
    tails = {}
    for name, optimizer in (("ours", optimizers["ours"]), ("adam", tuned.optimizer)):
        result = evaluate_optimizer(optimizer, suite["noisy"].task, horizon=30, num_problems=4, seed=0)
        tails[name] = result.losses[-3:].mean()
    rows = {(row["task"], row["optimizer"]): row for row in comparison.rows}
    row = rows["noisy", "ours"]
    assert row["loss"] == pytest.approx(tails["ours"])
    assert row["ratio_to_adam"]["ratio"] == pytest.approx(tails["adam"] / tails["ours"])
    assert row["best_baseline"] in ("adam", "sgd") and row["kind"] == "learned"
    assert rows["noisy", "adam"]["ratio_to_adam"] == {"ratio": 1.0, "ci95": [1.0, 1.0]}
    assert rows["noisy", "adam"]["hyperparameters"] == tuned.hyperparameters
    both = [rows[task, "ours"]["ratio_to_adam"]["ratio"] for task in suite]
    assert comparison.summary["ours"]["adam"].iqm == pytest.approx(np.mean(both))
    assert comparison.summary["ours"]["adam"].worst == min(both)


def test_a_diverged_run_counts_as_ratio_0(suite, descent):
    comparison = compare_suite({"wild": descent(lr=100.0), "adam": "adam"}, suite, **SIZES)
    for row in comparison.rows:
        if row["optimizer"] == "wild":
            assert row["diverged"] == 4 and row["ratio_to_adam"]["ratio"] == 0
    wild = comparison.summary["wild"]["best_baseline"]
    assert (wild.iqm, wild.worst, wild.better, wild.ci95) == (0, 0, 0, (0, 0))
    assert "(4 div.)" in str(comparison) and "8 of 8" in str(comparison)


def test_a_reference_that_diverged_counts_with_the_start(bowl):
    losses, held_out = np.array([np.inf, 9.0, 1.0]), {"test_loss": np.array([5.0, 1.0, np.inf])}
    smooth, diverged = np.stack([np.full(3, 1.5), losses]), np.array([True, True, False])
    made = Run(losses, np.full(3, 2.0), diverged, None, smooth, held_out, 1, 0.0)  # type: ignore[arg-type]
    assert made.as_reference.tolist() == [2, 2, 1]
    assert made.judged.tolist() == [math.inf, math.inf, 1]
    assert made.held_out_as_reference is not None and made.held_out_as_reference.tolist() == [2, 1, 2]
    assert made.held_out_judged is not None and made.held_out_judged.tolist() == [math.inf] * 3


def test_only_what_is_new_runs(suite, optimizers, descent, work, tmp_path):
    first = compare_suite(optimizers, suite, cache_dir=tmp_path, **SIZES)
    assert work == {"tuned": 4, "run": 6}
    assert numbers(first) == numbers(compare_suite(optimizers, suite, **SIZES)), "a cache changes no number"
    work.update(tuned=0, run=0)
    again = compare_suite(optimizers, suite, cache_dir=tmp_path, **SIZES)
    assert work == {"tuned": 0, "run": 0}
    assert numbers(again) == numbers(first) and again.summary == first.summary
    other = compare_suite(optimizers | {"ours": descent(lr=0.3)}, suite, cache_dir=tmp_path, **SIZES)
    assert work == {"tuned": 0, "run": 2}, "another learned optimizer alone runs"
    kept = [[row for row in numbers(c) if row["optimizer"] != "ours"] for c in (first, other)]
    assert kept[0] == kept[1] and len(kept[0]) == 4
    assert other.rows[0]["loss"] != first.rows[0]["loss"]


def test_a_suite_that_was_killed_goes_on(suite, optimizers, work, tmp_path):
    def stop(done: SuiteComparison) -> None:
        assert json.loads(done.to_json(tmp_path / "suite.json"))["complete"] is False
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare_suite(optimizers, suite, cache_dir=tmp_path, after_task=stop, **SIZES)
    assert {row["task"] for row in json.loads((tmp_path / "suite.json").read_text())["rows"]} == {"bowl"}
    assert work == {"tuned": 2, "run": 3}
    seen: list[int] = []
    whole = compare_suite(
        optimizers, suite, cache_dir=tmp_path, after_task=lambda done: seen.append(len(done.tasks)), **SIZES
    )
    assert work == {"tuned": 4, "run": 6} and seen == [1, 2]
    assert json.loads(whole.to_json())["complete"] is True
    assert numbers(whole) == numbers(compare_suite(optimizers, suite, **SIZES))


def test_a_damaged_file_is_computed_anew(suite, descent, work, tmp_path, caplog):
    settings = {"horizon": 5, "num_problems": 3, "seed": 0, "device": "cpu", "chunk": None}
    settings |= {"cache_dir": tmp_path, "label": "a/b c"}
    optimizer, task = Adam(lr=0.1), suite["bowl"].task
    first = cached_run(optimizer, task, dtype=torch.float32, **settings)
    (file,) = tmp_path.iterdir()
    assert file.name.startswith("a_b_c-")
    file.write_text(file.read_text()[:50])
    second = cached_run(optimizer, task, dtype=torch.float32, **settings)
    assert work["run"] == 2 and "damaged" in caplog.text
    assert first.losses.tolist() == second.losses.tolist()


def test_files(suite, optimizers, tmp_path):
    comparison = compare_suite(optimizers, suite, **SIZES)
    comparison.to_csv(tmp_path / "suite.csv")
    lines = list(csv.DictReader((tmp_path / "suite.csv").read_text().splitlines()))
    assert len(lines) == 6 and {"task", "loss", "ratio_to_adam", "ratio_to_best_baseline_low"} <= set(lines[0])
    content = json.loads(comparison.to_json(tmp_path / "suite.json"))
    assert content["summary"]["ours"]["ratio_to_adam"]["num_tasks"] == 2
    assert content["tasks"]["bowl"]["horizon"] == 10
    for path in comparison.plot(tmp_path):
        assert path.read_bytes().startswith(b"\x89PNG")
    assert "bowl" in str(comparison) and "to best baseline" in str(comparison)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suite": {}}, r"suite=\{\}: must have at least one task"),
        ({"num_problems": 1}, "num_problems=1: must be >= 2"),
        ({"tuning_problems": 0}, "tuning_problems=0: must be >= 2"),
        ({"optimizers": ["adma"]}, "did you mean adam"),
        ({"grids": {"adma": {"lr": [0.1]}}}, "grids.adma=.*did you mean adam"),
    ],
)
def test_bad_arguments_are_one_line(suite, changes, message):
    arguments = {"optimizers": ["adam"], "suite": suite, **SIZES, **changes}
    with pytest.raises(ValueError, match=message) as error:
        compare_suite(**arguments)
    assert "\n" not in str(error.value)


def test_negative_losses_are_refused(bowl):
    task = bowl(shift=1.0)
    type(task).can_be_negative, before = True, type(task).can_be_negative
    try:
        with pytest.raises(ValueError, match=r"suite\.a=bowl: its losses can be negative"):
            compare_suite(["adam"], {"a": (task, 3)})
    finally:
        type(task).can_be_negative = before
