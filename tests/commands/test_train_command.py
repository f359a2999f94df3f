"""`train.py` as users type it."""

import csv
import itertools
import json

import pytest
import torch
from omegaconf import OmegaConf

from ph_l2o.checkpoints import load_checkpoint
from ph_l2o.optim import save_weights
from ph_l2o.optimizers import PortHamiltonian

RESULTS = {
    ".lock",
    "checkpoints/best.ckpt",
    "checkpoints/last.ckpt",
    "comparison.csv",
    "comparison.json",
    "config.yaml",
    "curves.csv",
    "curves.png",
    "metrics.csv",
    "report.html",
    "run.log",
    "status.json",
}


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_the_results_that_the_docs_name(command, run_folder):
    outcome = command("train", "debug=default")
    assert outcome.code == 0, outcome.err
    folder = run_folder()
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and ".hydra" not in p.parts} == RESULTS
    assert json.loads((folder / "status.json").read_text())["status"] == "ok"
    comparison = json.loads((folder / "comparison.json").read_text())
    assert [row["optimizer"] for row in comparison["rows"]] == ["port_hamiltonian", "sgd", "adam"]
    assert comparison["horizon"] == 3
    rows = rows_of(folder / "metrics.csv")
    assert [row["outer_step"] for row in rows] == ["1", "2", "3", "4"]
    assert rows[1]["val/quadratic/final_loss"]
    assert "port_hamiltonian" in outcome.out and "comparison took" in outcome.out
    assert folder.name.endswith("_quadratic_port_hamiltonian")


def test_the_checkpoint_rebuilds_its_optimizer(command, run_folder):
    command("train", "debug=default", "optimizer.hidden_size=7", "compare=false")
    optimizer, config = load_checkpoint(run_folder() / "checkpoints" / "best.ckpt")
    assert config["optimizer"]["hidden_size"] == 7
    assert config == {k: v for k, v in config.items() if k != "paths"}  # no folders of this machine
    saved = torch.load(run_folder() / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    for name, value in optimizer.state_dict().items():
        assert torch.equal(value, saved[f"optimizer.{name}"])


def test_config_yaml_is_resolved_and_names_the_revision(command, run_folder):
    command("train", "debug=default", "seed=5", "compare=false")
    config = OmegaConf.load(run_folder() / "config.yaml")
    text = (run_folder() / "config.yaml").read_text()
    assert config.seed == 5 and "${" not in text and "git_revision" in config


def test_task_specific_defaults_and_what_users_type_wins(command, run_folder):
    command("train", "debug=default", "compare=false")
    assert OmegaConf.load(run_folder() / "config.yaml").optimizer.init_lr == 0.1  # conf/presets.yaml


def test_typed_values_win_over_task_specific_ones(command, run_folder):
    command("train", "debug=default", "compare=false", "optimizer.init_lr=0.03")
    assert OmegaConf.load(run_folder() / "config.yaml").optimizer.init_lr == 0.03


def test_resume_last_continues_in_the_same_folder(command, run_folder):
    command("train", "debug=default", "compare=false")
    before = run_folder()
    outcome = command("train", "debug=default", "compare=false", "ckpt_path=last", "meta.outer_steps=6")
    assert outcome.code == 0, outcome.err
    assert run_folder() == before
    rows = rows_of(before / "metrics.csv")
    assert [row["outer_step"] for row in rows] == ["1", "2", "3", "4", "5", "6"]


def test_weights_are_where_a_training_starts(command, run_folder, tmp_path):
    optimizer = PortHamiltonian(hidden_size=8, decay=(100, 0.5))
    path = save_weights(optimizer, tmp_path / "start.safetensors")
    settings = ("debug=default", "compare=false", "optimizer=port_hamiltonian_kronecker", "optimizer.hidden_size=8")
    outcome = command("train", *settings, f"weights={path}", "meta.learning_rate=1e-12")
    assert outcome.code == 0, outcome.err
    trained, _ = load_checkpoint(run_folder() / "checkpoints" / "last.ckpt")
    for name, value in optimizer.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], value, rtol=0, atol=1e-9)
    assert trained.anytime.decay is None  # an argument, no part of the weights


def test_evaluation_of_the_checkpoint_gives_the_number_of_the_training(command, run_folder, tmp_path):
    command("train", "debug=default")
    folder = run_folder()
    trained = json.loads((folder / "comparison.json").read_text())
    sizes = ("horizon=3", "num_problems=3", "tuning_problems=2")
    outcome = command("evaluate", f"optimizers=[{folder / 'checkpoints' / 'best.ckpt'}, adam]", *sizes)
    assert outcome.code == 0, outcome.err
    (path,) = tmp_path.glob("runs/*/*_evaluate_quadratic/comparison.json")
    evaluated = json.loads(path.read_text())
    assert [row["optimizer"] for row in evaluated["rows"]] == ["quadratic_port_hamiltonian", "adam"]
    for a, b in zip((trained["rows"][0], trained["rows"][2]), evaluated["rows"], strict=True):
        assert a["final"] == b["final"]
        assert a["all_mean"] == b["all_mean"]


def test_multirun_has_a_folder_for_each_job_and_a_summary(command, tmp_path):
    outcome = command("train", "--multirun", "debug=default", "optimizer=port_hamiltonian,adam", "seed=1,2")
    assert outcome.code == 0, outcome.err
    (sweep,) = tmp_path.glob("runs/multirun/*/*")
    jobs = sorted(p.name for p in sweep.iterdir() if p.is_dir())
    assert jobs == [
        "0_quadratic_port_hamiltonian_seed1",
        "1_quadratic_port_hamiltonian_seed2",
        "2_quadratic_adam_seed1",
        "3_quadratic_adam_seed2",
    ]
    rows = rows_of(sweep / "summary.csv")
    assert [row["status"] for row in rows] == ["ok"] * 4
    assert [(row["optimizer"], row["seed"]) for row in rows] == list(
        itertools.product(("port_hamiltonian", "adam"), ("1", "2"))
    )
    table = outcome.out.rpartition("job  ")[2]
    assert max(map(len, table.splitlines()[:5])) <= 80
    assert [line.split()[:4] for line in table.splitlines()[3:5]] == [
        ["2", "adam", "1", "ok"],
        ["3", "adam", "2", "ok"],
    ]
    # Jobs of one process don't leak into each other: the same as a run of its own.
    command("train", "debug=default", "optimizer=adam", "seed=2")
    (alone,) = tmp_path.glob("runs/20*/*")
    assert (
        json.loads((alone / "comparison.json").read_text())["rows"][0]["final"]
        == json.loads((sweep / jobs[3] / "comparison.json").read_text())["rows"][0]["final"]
    )


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_help_says_what_a_newcomer_needs(command, name):
    outcome = command(name, "--help")
    assert outcome.code == 0
    for text in ("Examples", f"python {name}.py", "task: autoencoder", "Results go to runs/"):
        assert text in outcome.out


def test_printing_the_configuration_starts_nothing(command, tmp_path):
    outcome = command("train", "--cfg", "job", "task=mnist")
    assert outcome.code == 0 and "hidden_sizes" in outcome.out
    assert list(tmp_path.iterdir()) == []
