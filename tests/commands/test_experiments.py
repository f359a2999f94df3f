"""Every `experiment=…`, shrunk: it composes, trains, and compares."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ph_l2o import cli

EXPERIMENTS = sorted(p.stem for p in (Path(cli.conf_dir()) / "experiment").glob("*.yaml"))
# What is left of an experiment is its task, optimizer and objective; `debug=default` has the last word on sizes.
SHRUNK = ("debug=default", "compare=true")


def test_there_are_experiments():
    assert {"quadratic_zeros", "mnist_study", "hnn_study_mnist", "lstm_study_quadratic"} <= set(EXPERIMENTS)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_smokes(command, run_folder, mnist_root, experiment):
    outcome = command("train", f"experiment={experiment}", *SHRUNK, f"paths.data={mnist_root}")
    assert outcome.code == 0, outcome.err
    config = OmegaConf.load(run_folder() / "config.yaml")
    assert (config.meta.outer_steps, config.estimator.truncation, config.evaluation.horizon) == (4, 3, 3)
    assert json.loads((run_folder() / "status.json").read_text())["status"] == "ok"
    comparison = json.loads((run_folder() / "comparison.json").read_text())
    learned = comparison["rows"][0]
    assert learned["kind"] == "learned" and learned["final"]["mean"] != "inf"
    task, optimizer = comparison["task"], config.optimizer._target_.rpartition(".")[2]
    assert run_folder().name.endswith(f"_{task}_{learned['optimizer']}"), "the folder names what was chosen"
    assert optimizer.lower() == learned["optimizer"].replace("_", "")


@pytest.mark.parametrize(
    ("experiment", "key", "value"),
    [
        ("quadratic_zeros", "task.init", "zeros"),
        ("mnist_study", "task.split", "study"),
        ("hnn_study_quadratic", "optimizer.norm", True),
        ("hnn_study_mnist", "optimizer.detach_carry", True),
        ("lstm_study_quadratic", "estimator.order", 1),
        ("lstm_study_mnist", "meta.objective", "mean_loss"),
        ("mnist_study", "meta.rescale", 0.7),  # what suits this optimizer on this task still holds
    ],
)
def test_an_experiment_changes_what_it_says(command, mnist_root, experiment, key, value):
    outcome = command("train", f"experiment={experiment}", f"paths.data={mnist_root}", "--cfg", "job")
    assert OmegaConf.select(OmegaConf.create(outcome.out), key) == value
