"""Every `experiment=…`, shrunk: it composes, trains and compares, or evaluates."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ph_l2o import cli
from ph_l2o.claims.page import ORDER
from ph_l2o.claims.parsing import parse_claims
from ph_l2o.commands.instantiate import build

NODES = ("task", "optimizer", "estimator", "meta")
ALL = {p.stem for p in (Path(cli.conf_dir()) / "claim").glob("*.yaml")}
FOLDER = Path(cli.conf_dir()) / "experiment"
EVALUATIONS = sorted(p.stem for p in FOLDER.glob("*.yaml") if "override /suite" in p.read_text())
CLAIMS = sorted(p.stem for p in FOLDER.glob("*.yaml") if "override /claim" in p.read_text())
EXPERIMENTS = sorted({p.stem for p in FOLDER.glob("*.yaml")} - {*EVALUATIONS, *CLAIMS})
# What is left of an experiment is its task, optimizer and objective; `debug=default` has the last word on sizes.
SHRUNK = ("debug=default", "compare=true")


def test_there_are_experiments():
    assert {"quadratic_zeros", "mnist_study", "hnn_study_mnist", "lstm_study_quadratic"} <= set(EXPERIMENTS)
    assert EVALUATIONS == ["generalise"]
    assert {"study", "study_quadratic"} <= set(CLAIMS)


@pytest.mark.parametrize("experiment", EVALUATIONS)
def test_every_evaluation_smokes(command, run_folder, mnist_root, experiment):
    """On two of its tasks; tests/tasks/test_suite_tasks.py has them all."""
    shrunk = ("horizon=3", "num_problems=2", "suite_tasks=[digits_softmax, mnist_vae]", "optimizers=[adam, sgd]")
    outcome = command("evaluate", f"experiment={experiment}", *shrunk, f"paths.data={mnist_root}", "paths.cache=kept")
    assert outcome.code == 0, outcome.err
    assert run_folder().name.endswith(f"_evaluate_{experiment}")
    result = json.loads((run_folder() / "suite.json").read_text())
    assert result["complete"] and [row["optimizer"] for row in result["rows"]] == ["adam", "sgd"] * 2
    assert result["summary"]["adam"]["ratio_to_adam"]["num_tasks"] == 2
    assert {"suite.csv", "suite_curves.csv", "suite_curves.png", "suite_ratios.png", "report.html"} <= {
        p.name for p in run_folder().iterdir()
    }
    kept = run_folder().parents[2] / "kept"
    assert len(list(kept.glob("*.json"))) == len(list((kept / "suite").glob("*.json"))) == 4
    assert "over tasks" in outcome.out


@pytest.mark.parametrize("experiment", EVALUATIONS)
def test_an_evaluation_has_its_own_horizons(command, experiment):
    config = OmegaConf.create(command("evaluate", f"experiment={experiment}", "--cfg", "job").out)
    assert config.horizon is None and config.num_problems >= 5 and config.tuning_problems >= 2
    assert {"adam", "nesterov", "muon", "soap"} <= set(config.optimizers)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_smokes(command, run_folder, mnist_root, experiment):
    outcome = command("train", f"experiment={experiment}", *SHRUNK, f"paths.data={mnist_root}")
    assert outcome.code == 0, outcome.err
    config = OmegaConf.load(run_folder() / "config.yaml")
    assert (config.meta.outer_steps, config.meta.truncation, config.evaluation.horizon) == (4, 3, 3)
    assert json.loads((run_folder() / "status.json").read_text())["status"] == "ok"
    comparison = json.loads((run_folder() / "comparison.json").read_text())
    learned = comparison["rows"][0]
    assert learned["kind"] == "learned" and learned["final"]["mean"] != "inf"
    chosen = dict(item for line in OmegaConf.load(FOLDER / f"{experiment}.yaml").defaults for item in line.items())
    task, optimizer = chosen["override /task"], chosen["override /optimizer"]
    assert run_folder().name.endswith(f"_{task}_{optimizer}") and learned["optimizer"] == optimizer


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


@pytest.mark.parametrize("experiment", CLAIMS)
def test_every_claim_composes_with_its_trainings_and_tasks(composed, experiment, mnist_root):
    """tests/commands/test_claims.py runs one of its own."""
    for name in ("train", "evaluate"):
        claims = parse_claims(OmegaConf.to_container(composed(f"experiment={experiment}", command=name).claims))
    assert set(claims) == (ALL if experiment == "study" else {experiment.removeprefix("study_")})
    if experiment == "study":
        return
    for claim in claims.values():
        for group in {t.overrides[:-1] if t.name[-5:-1] == "seed" else t.overrides for t in claim.trainings.values()}:
            cfg = composed(*group, f"paths.data={mnist_root}")
            made = {key: build(OmegaConf.masked_copy(cfg, [key, "paths"])[key], key) for key in NODES}
            made["meta"].check_truncation(made["estimator"])
        for task in {m.task for m in claim.measurements.values()}:
            cfg = composed(*task, f"paths.data={mnist_root}", command="evaluate")
            build(OmegaConf.masked_copy(cfg, ["task", "paths"]).task, "task")


def test_all_claims_are_in_the_study_in_the_order_of_its_page():
    assert set(ALL) == set(ORDER)
