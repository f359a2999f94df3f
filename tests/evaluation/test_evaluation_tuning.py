from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ph_l2o.evaluation import evaluate_optimizer, tune, tuning
from ph_l2o.evaluation.tuning import default_num_problems
from ph_l2o.port_hamiltonian.diagonal import PortHamiltonian
from ph_l2o.tasks.quadratic import Quadratic

SETTINGS: dict[str, Any] = {"horizon": 20, "num_problems": 6, "seed": 0}


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("chunk", [None, 5])
def test_batched_grid_equals_single_runs(descent: Any, noise: float, chunk: int | None) -> None:
    task = Quadratic(3, noise=noise)
    grid = {"lr": (0.003, 0.01, 0.03), "decay": (0.0, 0.5)}
    tuned = tune(descent, task, grid=grid, chunk=chunk, dtype=torch.float64, **SETTINGS)
    assert len(tuned.table) >= 6
    for row in tuned.table:
        single = evaluate_optimizer(
            descent(row["lr"], row["decay"]), task, split="val", dtype=torch.float64, **SETTINGS
        )
        criterion = single.losses[11:].mean() if noise else single.losses[-1].mean()
        assert row["criterion"] == (math.inf if math.isinf(criterion) else pytest.approx(criterion, rel=1e-9))
    best = min(tuned.table, key=lambda row: row["criterion"])
    assert tuned.hyperparameters == {"lr": best["lr"], "decay": best["decay"]}
    assert float(tuned.optimizer.hyperparameters["lr"]) == best["lr"]


@pytest.mark.parametrize("grid", [(1e-5, 1e-4, 1e-3), (30.0, 100.0, 300.0), (1e-3,)])
def test_grid_is_widened_until_the_best_is_inside(descent: Any, bowl: Any, grid: tuple[float, ...]) -> None:
    # One problem, a = 1: lr = 1 jumps to the minimum.
    tuned = tune(descent, bowl(), horizon=5, num_problems=1, seed=0, grid={"lr": grid})
    assert tuned.widened
    assert tuned.hyperparameters["lr"] == pytest.approx(1.0, rel=0.2)
    assert min(tuned.grid["lr"]) < tuned.hyperparameters["lr"] < max(tuned.grid["lr"])


def test_an_interior_best_is_refined_only(descent: Any, bowl: Any) -> None:
    tuned = tune(descent, bowl(), horizon=5, num_problems=1, seed=0, grid={"lr": (0.05, 0.5, 5.0)})
    assert not tuned.widened
    steps = np.diff(np.log10(tuned.grid["lr"]))
    assert steps == pytest.approx(0.25, abs=1e-4)
    assert tuned.hyperparameters["lr"] == pytest.approx(0.5 * 10**0.25, rel=1e-4)


def test_widening_ends(descent: Any, bowl: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tuned = tune(
            descent,
            bowl(),
            horizon=2,
            num_problems=1,
            seed=0,
            grid={"lr": (1e-7, 1.1e-7)},
            dtype=torch.float64,
        )
    assert tuned.widened and len(tuned.grid["lr"]) < 20
    assert "still at an edge" in caplog.text


def test_all_diverged(descent: Any, bowl: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tuned = tune(descent, bowl(), horizon=50, num_problems=2, seed=0, grid={"lr": (1e30, 1e31)})
    assert all(row["criterion"] == math.inf for row in tuned.table)
    assert "diverged with every hyperparameter" in caplog.text
    assert tuned.hyperparameters["lr"] < 1e30  # nearer to what may work


def test_cache(descent: Any, bowl: Any, tmp_path: Path) -> None:
    first = tune(descent, bowl(), cache_dir=tmp_path, **SETTINGS)
    runs = descent.runs
    again = tune(descent, bowl(), cache_dir=tmp_path, **SETTINGS)
    assert again.cached and not first.cached and descent.runs == runs > 0
    assert again.table == first.table and again.hyperparameters == first.hyperparameters
    assert (again.grid, again.widened) == (first.grid, first.widened)
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


@pytest.mark.parametrize(
    "change",
    [
        {"horizon": 21},
        {"num_problems": 7},
        {"seed": 1},
        {"dtype": torch.float64},
        {"grid": {"lr": (0.01, 0.1)}},
        {"task": {"shift": 1.0}},
        {"optimizer": {"decay": 0.1}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_cache_misses_what_differs(descent: Any, bowl: Any, tmp_path: Path, change: dict[str, Any]) -> None:
    change = dict(change)
    tune(descent(), bowl(), cache_dir=tmp_path, **SETTINGS)
    optimizer, task = descent(**change.pop("optimizer", {})), bowl(**change.pop("task", {}))
    assert not tune(optimizer, task, cache_dir=tmp_path, **{**SETTINGS, **change}).cached
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": 1}', "\x00\xff", None])
def test_damaged_cache_is_computed_anew(
    descent: Any, bowl: Any, tmp_path: Path, damage: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    first = tune(descent, bowl(), cache_dir=tmp_path, **SETTINGS)
    (path,) = tmp_path.iterdir()
    good = path.read_text()
    path.write_text(good.replace('"table": [', '"table": [[0.1], ') if damage is None else damage)
    with caplog.at_level(logging.WARNING):
        again = tune(descent, bowl(), cache_dir=tmp_path, **SETTINGS)
    assert not again.cached and again.table == first.table
    assert caplog.text.count("damaged cache") == 1
    assert path.read_text() == good


def test_infinite_criteria_survive_the_cache(descent: Any, bowl: Any, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        **SETTINGS,
        "horizon": 100,
        "grid": {"lr": (0.01, 0.1, 1e3)},
        "cache_dir": tmp_path,
    }
    first, again = (tune(descent, bowl(), **settings) for _ in range(2))
    assert again.cached and again.table == first.table
    assert any(row["criterion"] == math.inf for row in again.table)


def test_default_number_of_problems(bowl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [default_num_problems(bowl(), n) for n in (2, 300, 10_000)] == [256, 300, 1024]
    for numel, expected in [(2**10, 256), (2**14, 16), (2**30, 16)]:
        monkeypatch.setattr(tuning, "num_coordinates", lambda task, numel=numel: numel)
        assert default_num_problems(bowl(), 64) == expected


@pytest.mark.parametrize(
    ("optimizer", "grid", "message"),
    [
        ("nestrov", None, "optimizer=nestrov: .* did you mean nesterov"),
        (PortHamiltonian, None, "optimizer=PortHamiltonian: cannot be tuned"),
        (None, {"lrr": (1.0,)}, r"grid\.lrr: .* did you mean lr"),
        (None, {"lr": ()}, r"grid\.lr=\[\]: must have at least one value"),
        (None, {"lr": (0.0, 1.0)}, r"grid\.lr=\[0\.0, 1\.0\]: all values must be > 0"),
        (None, {}, "at least one hyperparameter of lr, decay"),
    ],
)
def test_bad_arguments(descent: Any, bowl: Any, optimizer: Any, grid: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tune(optimizer or descent, bowl(), grid=grid, **SETTINGS)
