"""Baselines by name, and under schedules; tests/commands/test_outside_baselines.py has those from outside."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ph_l2o.evaluation import BASELINES, compare_suite, evaluate_optimizer, tune
from ph_l2o.evaluation.baselines import baseline, names
from ph_l2o.keys import ProblemKeys
from ph_l2o.optimizers import AdamW, Scheduled
from ph_l2o.tasks.quadratic import Quadratic

SETTINGS: dict[str, Any] = {"horizon": 20, "num_problems": 6, "seed": 0}


def test_the_shipped_ones_in_their_order():
    assert BASELINES[:6] == ("sgd", "momentum", "nesterov", "rmsprop", "adam", "adamw")
    assert BASELINES[6:] == ("muon", "nadamw", "prodigy", "schedulefreeadamw", "soap")
    assert set(BASELINES) <= set(names())
    assert not {"lstm", "hnn", "rnnprop", "scheduled", "classicaloptimizer", "porthamiltonian"} & set(names())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adma", "no baseline has this name; did you mean adam"),
        ("adam+cosin", "no schedule has this name; did you mean cosine"),
        ("adam+", "no schedule has this name"),
        ("lstm+cosine", "no baseline has this name"),
        ("adam+untuned+cosine", "no schedule has this name"),
        ("adam+best+untuned", "[+]best is found by tuning"),
        ("adam@-1", "after @ must be a learning rate, a number > 0, as in adam@0.1"),
        ("adam@fast", "after @ must be a learning rate"),
        ("adam@0.1+best", "[+]best is found by tuning; leave out @0.1"),
    ],
)
def test_unknown_names_are_one_line(name, message):
    with pytest.raises(ValueError, match=rf"^optimizer={name.replace('+', '.')}: {message}") as error:
        baseline(name, 3)
    assert "\n" not in str(error.value)


def test_tuned_over_schedule_and_learning_rate_in_one_batch(monkeypatch):
    """Every point as a run by itself; and as few runs as for one schedule."""
    from ph_l2o.evaluation import grid_search

    task, grid, batches = Quadratic(3), {"lr": (0.003, 0.03, 0.3)}, []
    run_episode = grid_search.run_episode

    def counted(optimizer, problem, horizon):
        batches.append(problem.params.num_problems)
        return run_episode(optimizer, problem, horizon)

    monkeypatch.setattr(grid_search, "run_episode", counted)
    settings = {"grid": grid, "dtype": torch.float64, **SETTINGS}
    tuned = tune("adamw+best", task, **settings)
    assert batches[0] == 3 * 3 * 6, "the first grid is one batch"
    assert {row["schedule"] for row in tuned.table} == {"constant", "cosine", "linear"}
    for row in tuned.table:
        alone = AdamW().double().with_hyperparameters(lr=row["lr"])
        alone = Scheduled(alone, row["schedule"], horizon=SETTINGS["horizon"])
        single = evaluate_optimizer(alone, task, split="val", dtype=torch.float64, **SETTINGS)
        assert row["criterion"] == pytest.approx(single.losses[-1].mean(), rel=1e-9)
    best = min(tuned.table, key=lambda row: row["criterion"])
    assert (tuned.schedule, tuned.hyperparameters) == (best["schedule"], {"lr": best["lr"]})
    assert tuned.optimizer.schedule == best["schedule"] and tuned.grid["schedule"] == ("constant", "cosine", "linear")

    plain = tune("adamw", task, **settings)
    constant = {row["lr"]: row["criterion"] for row in tuned.table if row["schedule"] == "constant"}
    assert {row["lr"]: row["criterion"] for row in plain.table}.items() >= {k: constant[k] for k in grid["lr"]}.items()


def test_a_suite_takes_schedules(tmp_path):
    made = [
        compare_suite(["adam", "nesterov+linear", "sgd+best"], {"a": (Quadratic(3), 12)}, cache_dir=tmp_path)
        for _ in range(2)
    ]
    by_name = {row["optimizer"]: row for row in made[0].rows}
    assert by_name["adam"]["schedule"] is None and by_name["nesterov+linear"]["schedule"] == "linear"
    assert by_name["sgd+best"]["schedule"] in ("constant", "cosine", "linear")
    assert set(by_name["sgd+best"]["hyperparameters"]) == {"lr"}
    again = {row["optimizer"]: row["loss"] for row in made[1].rows}
    assert again == {name: row["loss"] for name, row in by_name.items()}
    assert {p.name.rpartition("-")[0] for p in tmp_path.glob("*.json")} == {"adam", "nesterov+linear", "sgd+best"}


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("adam@0.1", lambda x: torch.optim.Adam(x, lr=0.1)),
        ("momentum@1e-2", lambda x: torch.optim.SGD(x, lr=0.01, momentum=0.9)),
        ("rmsprop@0.03", lambda x: torch.optim.RMSprop(x, lr=0.03)),
    ],
)
def test_a_name_with_a_rate_is_torch_s_optimizer_at_that_rate(name, made):
    """Step by step on the problems by themselves; nothing is tuned."""
    task = Quadratic(3)
    found = evaluate_optimizer(baseline(name, 20), task, dtype=torch.float64, **SETTINGS).losses
    for index in range(SETTINGS["num_problems"]):
        problem = task.sample(ProblemKeys(0, "test", 0, [index]), dtype=torch.float64)
        theta = problem.params.flat.clone().requires_grad_()
        theirs, losses = made([theta]), []
        for _ in range(SETTINGS["horizon"] + 1):
            theirs.zero_grad()
            loss = problem.loss(problem.params.like(theta), {}, None)[0].sum()
            loss.backward()
            losses.append(loss.item())
            theirs.step()
        assert found[:, index] == pytest.approx(losses, rel=1e-5)  # a rate is kept in float32


def test_a_rate_goes_with_a_schedule():
    made = baseline("adam@0.1+cosine", 20)
    assert isinstance(made, Scheduled) and made.schedule == "cosine"
    assert made.hyperparameters["lr"].item() == pytest.approx(0.1)
