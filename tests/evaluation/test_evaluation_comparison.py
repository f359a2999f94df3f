from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ph_l2o.evaluation import BASELINES, Comparison, compare, tuning
from ph_l2o.port_hamiltonian.diagonal import PortHamiltonian
from ph_l2o.tasks.quadratic import Quadratic


@pytest.fixture
def baselines(monkeypatch: pytest.MonkeyPatch, descent: Any) -> None:
    """All names stand for gradient descent."""
    monkeypatch.setattr(tuning, "baseline", lambda name, horizon: descent())


@pytest.fixture
def comparison(baselines: None, descent: Any) -> Comparison:
    optimizers = {
        "learned": PortHamiltonian(),
        "sgd": "sgd",
        "wild": descent(lr=100.0),
        "slow": descent(lr=1e-4),
    }
    return compare(optimizers, Quadratic(4), horizon=30, num_problems=16, tuning_problems=8)


def test_rows(comparison: Comparison) -> None:
    rows = {row["optimizer"]: row for row in comparison.rows}
    assert list(rows) == ["learned", "sgd", "wild", "slow"] == list(comparison.curves)
    assert [row["kind"] for row in comparison.rows] == ["learned", "baseline", "classical", "classical"]
    assert comparison.best_baseline == "sgd"
    assert rows["sgd"]["difference_to_best_baseline"] == {"mean": 0.0, "ci95": [0.0, 0.0]}
    assert rows["sgd"]["ratio_to_best_baseline"] == {"geometric_mean": 1.0, "ci95": [1.0, 1.0]}
    assert rows["sgd"]["learning_rate"] in rows["sgd"]["grid"]["lr"]
    assert rows["learned"]["learning_rate"] is None and rows["learned"]["grid"] is None
    assert rows["slow"]["hyperparameters"] == pytest.approx({"lr": 1e-4, "decay": 0.0})

    difference = comparison.finals["slow"] - comparison.finals["sgd"]
    assert rows["slow"]["difference_to_best_baseline"]["mean"] == pytest.approx(difference.mean())
    low, high = rows["slow"]["difference_to_best_baseline"]["ci95"]
    assert 0 < low < difference.mean() < high
    ratio = np.exp(np.log(comparison.finals["slow"] / comparison.finals["sgd"]).mean())
    assert rows["slow"]["ratio_to_best_baseline"]["geometric_mean"] == pytest.approx(ratio)

    assert rows["wild"]["diverged"] == 16 and rows["wild"]["final"]["mean"] == math.inf
    assert rows["wild"]["difference_to_best_baseline"] == {"mean": math.inf, "ci95": [math.inf, math.inf]}


def test_json_schema(comparison: Comparison, tmp_path: Path) -> None:
    text = comparison.to_json(tmp_path / "new" / "comparison.json")
    assert (tmp_path / "new" / "comparison.json").read_text() == text
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["comparison.json"]

    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    read = json.loads(text, parse_constant=no_constant)
    assert {"task", "horizon", "num_problems", "seed", "config", "rows", "git_revision"} <= set(read)
    assert set(read["versions"]) == {"ph_l2o", "torch", "python"}
    assert (read["task"], read["horizon"], read["num_problems"], read["seed"]) == ("quadratic", 30, 16, 0)
    for row in read["rows"]:
        assert set(row["final"]) == {"mean", "median", "geometric_mean", "iqm", "ci95"}
        assert len(row["final"]["ci95"]) == len(row["difference_to_best_baseline"]["ci95"]) == 2
        assert isinstance(row["diverged"], int) and row["step_seconds"] > 0
        for name in (
            "learning_rate",
            "last10_mean",
            "all_mean",
            "accuracy",
            "test_loss",
            "hyperparameters",
            "grid",
        ):
            assert name in row
        assert row["accuracy"] is None  # a quadratic has none
    wild = read["rows"][2]
    assert wild["final"]["mean"] == "inf" and float(wild["final"]["mean"]) == math.inf


def test_csv_round_trip(comparison: Comparison, tmp_path: Path) -> None:
    frame = comparison.to_frame()
    with comparison.to_csv(tmp_path / "comparison.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["optimizer"] for row in read] == ["learned", "sgd", "wild", "slow"]
    assert {"final_mean", "final_low", "final_high", "difference_to_best_baseline_low"} <= set(read[0])
    for name in ("final_mean", "final_median", "last10_mean", "all_mean", "step_seconds", "learning_rate"):
        for row, value in zip(read, frame[name], strict=True):
            assert math.isnan(value) if row[name] == "" else float(row[name]) == value
    assert json.loads(read[1]["hyperparameters"])["lr"] == frame["learning_rate"][1]


def test_paired_differences_to_each_baseline(comparison: Comparison) -> None:
    """Against the plain formula, for every measure; the interval contains the mean."""
    learned = next(row for row in comparison.rows if row["kind"] == "learned")
    for baseline, measures in learned["paired_differences"].items():
        difference = comparison.finals[learned["optimizer"]] - comparison.finals[baseline]
        assert measures["final"]["mean"] == pytest.approx(difference.mean())
        other = next(row for row in comparison.rows if row["optimizer"] == baseline)
        for what in ("last10", "all"):
            assert measures[what]["mean"] == pytest.approx(learned[f"{what}_mean"] - other[f"{what}_mean"])
        for estimate in measures.values():
            assert estimate["ci95"][0] <= estimate["mean"] <= estimate["ci95"][1]
    assert all(row["paired_differences"] is None for row in comparison.rows if row["kind"] == "baseline")


def test_tables(comparison: Comparison) -> None:
    main, paired = str(comparison).split("\n\n")
    assert paired.startswith("paired difference") and "learned - sgd" in paired
    title, header, rule, *lines, left_out = main.split("\n")
    assert "16 test problems" in title and "to sgd" in title
    assert header.split()[:3] == ["optimizer", "lr", "mean"] and "accuracy" not in header
    assert len(lines) == 4 and all(len(line) == len(rule) for line in lines)
    assert lines[2].split()[2] == "inf" and left_out.startswith("not shown, for want of room: ")
    html = comparison._repr_html_()
    assert "16 test problems" in html and html.count("<tr") == 5 and "<td>learned</td>" in html


def test_metrics_are_in_the_rows(descent: Any, bowl: Any) -> None:
    (row,) = compare(descent(lr=0.1), bowl(), horizon=3, num_problems=8).rows
    contraction = (1 - 0.1 * np.arange(1, 9)) ** 3
    assert row["accuracy"] == pytest.approx((contraction < 0.5).mean())
    assert row["test_loss"] == pytest.approx((contraction**2).mean(), rel=1e-5)
    assert row["difference_to_best_baseline"] is None


def test_losses_that_can_be_negative(descent: Any, bowl: Any, tmp_path: Path) -> None:
    task = bowl(shift=1.0)
    task.can_be_negative = True
    comparison = compare({"a": descent()}, task, horizon=5, num_problems=4)
    assert comparison.rows[0]["final"]["geometric_mean"] is None
    assert "geo. mean" not in str(comparison)
    assert comparison.plot()[1].get_yscale() == "linear"


def test_results_are_reproducible(baselines: None, tmp_path: Path) -> None:
    def rows(chunk: int | None) -> list[dict[str, Any]]:
        found = compare(
            ["sgd"],
            Quadratic(3),
            horizon=10,
            num_problems=20,
            tuning_problems=4,
            chunk=chunk,
            cache_dir=tmp_path,
        )
        return [{k: v for k, v in row.items() if k != "step_seconds"} for row in found.rows]

    assert rows(None) == rows(None)
    assert rows(7)[0]["final"]["mean"] == pytest.approx(rows(None)[0]["final"]["mean"], rel=1e-5)


def test_names(descent: Any, bowl: Any) -> None:
    found = compare([descent(), descent(lr=0.01), PortHamiltonian()], bowl(), horizon=1, num_problems=2)
    assert list(found.finals) == ["descent", "descent_2", "porthamiltonian"]


def test_progress_is_told(baselines: None, bowl: Any) -> None:
    told: list[tuple[str, int, int]] = []
    compare("sgd", bowl(), horizon=2, num_problems=3, tuning_problems=2, progress=lambda *x: told.append(x))
    assert [what for what, done, total in told if done == total][-1] == "sgd: test"
    assert told[0][0] == "sgd: tuning"


@pytest.mark.parametrize(
    ("optimizers", "change", "message"),
    [
        ("sgd", {"horizon": 0}, r"^horizon=0: must be >= 1 \(inner steps\)$"),
        ("sgd", {"num_problems": 1}, r"^num_problems=1: must be >= 2 \(test problems\)$"),
        ("sgd", {"tuning_problems": 1}, r"^tuning_problems=1: must be >= 2 \(validation problems\)$"),
        ("sgd", {"seed": -3}, r"^seed=-3: must be >= 0"),
        (["adma"], {}, r"optimizers=\[…, adma\]: .*did you mean adam"),
        ({"mine": "nestrov"}, {}, r"optimizers=\[…, nestrov\]: .*did you mean nesterov"),
        (["sgd", "sgd"], {}, "sgd is named twice"),
        ([], {}, "must name at least one optimizer"),
        ({"a": 3}, {}, r"optimizers\.a=3: must be a LearnedOptimizer, or a baseline's name"),
        ("sgd", {"grids": {"sdg": {}}}, r"grids\.sdg=.*did you mean sgd"),
    ],
)
def test_bad_arguments(optimizers: Any, change: dict[str, Any], message: str, bowl: Any) -> None:
    with pytest.raises(ValueError, match=message) as error:
        compare(optimizers, bowl(), **change)
    assert "\n" not in str(error.value)


def test_all_baselines_on_quadratics() -> None:
    pytest.importorskip("ph_l2o.optimizers.classical")
    found = compare(list(BASELINES), Quadratic(10), num_problems=500, tuning_problems=200, seed=1)
    rows = {row["optimizer"]: row for row in found.rows}
    # Figures of tuned optimizers, with room for the choice of problems.
    assert rows["nesterov"]["final"]["mean"] < 0.6 and rows["momentum"]["final"]["median"] < 0.05
    assert rows["adam"]["final"]["mean"] < 0.7 < rows["sgd"]["final"]["mean"]
    assert found.best_baseline in ("nesterov", "momentum", "adam", "adamw")
    for row in found.rows:
        rates = row["grid"]["lr"]
        assert min(rates) < row["learning_rate"] < max(rates)
