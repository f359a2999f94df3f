"""What is recorded of an optimizer is what it did."""

import csv

import numpy as np
import pytest
import torch

from ph_l2o.commands.diagnose import Diagnose
from ph_l2o.evaluation.diagnostics import diagnose, plot, write_csv
from ph_l2o.inner import run
from ph_l2o.keys import ProblemKeys
from ph_l2o.meta import fit
from ph_l2o.optimizers import Adam, PortHamiltonian
from ph_l2o.tasks import LogisticRegression, Quadratic
from tests.meta.test_learner import learner

PER_TENSOR = {"lr", "damping", "mix", "rho", "lean"}


def test_the_record_is_of_the_run(tmp_path):
    torch.manual_seed(0)
    optimizer, task = PortHamiltonian(hidden_size=4), LogisticRegression(features=5)
    found = diagnose(optimizer, task, 12, num_problems=3, seed=4)
    problem = task.sample(ProblemKeys(4, "test", 0, range(3)))
    carry, losses = run(optimizer, problem, 12)
    np.testing.assert_array_equal(found.loss, losses[:12].numpy())
    assert set(found.by_tensor) == PER_TENSOR
    assert all(x.shape == (12, 3, problem.params.layout.num_tensors) for x in found.by_tensor.values())
    energy = found.numbers["energy"]
    assert energy.shape == (12, 3) and (np.diff(energy, axis=0) <= 0).all()
    assert (carry.state.energy.numpy() <= energy[-1]).all()
    used = found.numbers["tank"] + found.numbers["kinetic"] + found.numbers["spring"]
    np.testing.assert_allclose(used, energy, rtol=1e-5)
    assert (found.by_tensor["damping"] > 0).all() and (found.by_tensor["lr"] > 0).all()

    write_csv(found, tmp_path / "d.csv")
    rows = list(csv.DictReader((tmp_path / "d.csv").read_text().splitlines()))
    assert len(rows) == 12 and f"lr/{found.tensors[0]}" in rows[0]
    assert float(rows[3]["loss"]) == pytest.approx(float(np.median(found.loss[3])), rel=1e-4)
    shown = [axes for axes in plot(found, title="x").axes if axes.get_title()]
    assert {*PER_TENSOR, "loss"} <= {axes.get_title() for axes in shown}
    assert all(axes.get_xlabel() == "inner step" and axes.get_ylabel() for axes in shown)


def test_an_optimizer_without_diagnostics():
    found = diagnose(Adam(), Quadratic(3), 5)
    assert found.loss.shape == (5, 4) and not found.by_tensor
    with pytest.raises(ValueError, match="no diagnostics"):
        plot(found, title="x")


def test_the_callback_logs_numbers(tmp_path):
    fit(learner(), tmp_path, callbacks=[Diagnose(horizon=20)])
    rows = [
        row
        for row in csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines())
        if row.get("diagnostics/lr_start")
    ]
    assert len(rows) == 3  # one for each validation
    assert float(rows[0]["diagnostics/energy_start"]) >= float(rows[0]["diagnostics/energy_end"]) > 0
