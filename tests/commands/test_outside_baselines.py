"""A classical optimizer and a schedule from outside of the package, by their names."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ph_l2o
from ph_l2o import recipes
from ph_l2o.evaluation import compare
from ph_l2o.evaluation.baselines import baseline, unknown
from ph_l2o.optimizers import ClassicalOptimizer, scheduled
from ph_l2o.tasks import Quadratic

SOURCE = '''
    """A classical optimizer and a schedule of a user."""

    import torch
    from ph_l2o.optimizers import ClassicalOptimizer, register_schedule
    from ph_l2o.optimizers.classical import SGDState


    class SignDescent(ClassicalOptimizer):
        grid = {"lr": (0.001, 0.01, 0.1)}

        def __init__(self, *, lr: float = 0.01):
            super().__init__(lr=lr)

        def init(self, params):
            return SGDState()

        def update(self, params, grads, loss, state):
            return params.like(params.flat - self.hyperparameters["lr"] * grads.flat.sign()), state


    register_schedule("triangle", lambda progress: 1 - (2 * progress - 1).abs(), warm_up=0)
'''


@pytest.fixture
def outside(tmp_path_factory, monkeypatch):
    """The name of a module with a baseline and a schedule, not yet imported."""
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "outside_baseline.py").write_text(textwrap.dedent(SOURCE))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(sys.modules, "outside_baseline", ModuleType("outside_baseline"))  # so that it is gone after
    del sys.modules["outside_baseline"]
    monkeypatch.setattr(recipes, "_CLASSES", dict(recipes._CLASSES))
    before = dict(scheduled.SCHEDULES)
    yield "outside_baseline"
    scheduled.SCHEDULES.clear()
    scheduled.SCHEDULES.update(before)


def test_one_from_outside_is_compared_by_its_name(outside):
    assert unknown("signdescent") is not None
    importlib.import_module(outside)
    found = compare(
        ["signdescent", "signdescent+triangle", "sgd"], Quadratic(3), horizon=20, num_problems=6, tuning_problems=4
    )
    plain, scheduled, _ = found.rows
    assert [row["kind"] for row in found.rows] == ["baseline"] * 3
    assert plain["schedule"] is None and scheduled["schedule"] == "triangle"
    assert {0.001, 0.01, 0.1} <= set(plain["grid"]["lr"])
    assert type(baseline("outside_baseline.SignDescent+best", 3).optimizer).__name__ == "SignDescent"


def test_the_command_takes_one_from_outside(outside, command, run_folder):
    words = ("optimizers=[signdescent, signdescent+triangle, adam+best]", f"plugins=[{outside}]")
    outcome = command("evaluate", *words, "horizon=5", "num_problems=3", "tuning_problems=2")
    assert outcome.code == 0, outcome.err
    content = json.loads((run_folder() / "comparison.json").read_text())
    assert [row["optimizer"] for row in content["rows"]] == ["signdescent", "signdescent+triangle", "adam+best"]
    assert set(content["versions"]) == {"ph_l2o", "torch", "python"} and "git_revision" in content
    assert f"{os.cpu_count()} cores" in content["machine"]
    best = content["rows"][2]
    assert best["schedule"] in best["grid"]["schedule"] == ["constant", "cosine", "linear"]
    assert "schedule" in outcome.out


def test_a_training_compares_with_it(outside, command, run_folder):
    words = ("evaluation.baselines=[signdescent, nesterov+linear]", f"plugins=[{outside}]")
    outcome = command("train", "debug=default", "optimizer=rnnprop", "compare=true", *words)
    assert outcome.code == 0, outcome.err
    rows = json.loads((run_folder() / "comparison.json").read_text())["rows"]
    assert [row["optimizer"] for row in rows] == ["rnnprop", "signdescent", "nesterov+linear"]
    checkpoint = run_folder() / "checkpoints" / "best.ckpt"
    outcome = command("evaluate", f"optimizers=[{checkpoint}]", "horizon=3", "num_problems=2", "run_name=again")
    assert outcome.code == 0 and "rnnprop" in outcome.out


def test_a_trained_schedule_is_evaluated(command, run_folder):
    outcome = command("train", "debug=default", "optimizer=scheduled", "optimizer.schedule=linear", "compare=true")
    assert outcome.code == 0, outcome.err
    rows = json.loads((run_folder() / "comparison.json").read_text())["rows"]
    assert (rows[0]["optimizer"], rows[0]["kind"], rows[0]["schedule"]) == ("scheduled", "classical", "linear")


def test_a_plugin_that_is_not_there_is_one_line(command):
    outcome = command("evaluate", "plugins=[nowhere_to_be_found]", "optimizers=[adam]")
    assert outcome.error.startswith("plugins=[…, nowhere_to_be_found]: cannot be imported")


def test_two_of_one_name_have_to_be_told_apart(outside):
    importlib.import_module(outside)

    class SignDescent(ClassicalOptimizer):
        grid = {"lr": (0.1,)}  # noqa: RUF012

        def init(self, params: Any) -> Any: ...

        def update(self, params: Any, grads: Any, loss: Any, state: Any) -> Any: ...

    with pytest.raises(ValueError, match=r"optimizer=signdescent: could be any of outside_baseline.SignDescent, .*"):
        baseline("signdescent", 3)


def test_a_file_in_the_package_is_all_that_a_new_one_needs(tmp_path):
    """With its YAML file it is meta-trained too."""
    here = Path(ph_l2o.__file__).parents[1]
    for name in ("ph_l2o", "conf"):
        shutil.copytree(here / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(here / "train.py", tmp_path)
    (tmp_path / "ph_l2o" / "optimizers" / "sign_descent.py").write_text(textwrap.dedent(SOURCE))
    node = "# A test:  python train.py optimizer=sign_descent\n_target_: ph_l2o.optimizers.sign_descent.SignDescent\n"
    (tmp_path / "conf" / "optimizer" / "sign_descent.yaml").write_text(node)
    words = ["optimizer=sign_descent", "evaluation.baselines=[signdescent+triangle]", "debug=default", "compare=true"]
    call = [sys.executable, "train.py", *words]
    done = subprocess.run(call, cwd=tmp_path, env={**os.environ, "PYTHONPATH": "."}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (result,) = tmp_path.glob("runs/20*/*/comparison.json")
    rows = json.loads(result.read_text())["rows"]
    assert [row["optimizer"] for row in rows] == ["sign_descent", "signdescent+triangle"]
