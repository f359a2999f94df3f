"""Weights & Biases, offline: what runs write, key by key, and that jobs of a sweep are runs of their own."""

import re

import pytest
from wandb_stand_ins import files, written

TINY = ("debug=default", "logger=wandb", "evaluation.baselines=[sgd]")


@pytest.fixture(autouse=True)
def offline(command, monkeypatch, tmp_path):
    """No API key, so the mode is for ph_l2o to find."""
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))


def test_a_training_and_an_evaluation_of_its_checkpoint(command, run_folder, tmp_path):
    own = ("logger.wandb.tags=[mine]", "logger.wandb.notes=a note", "logger.wandb.entity=team")
    more = ("callbacks=diagnostics", "callbacks.diagnostics.horizon=10")
    outcome = command("train", *TINY, *own, *more)
    assert outcome.code == 0, outcome.err
    lines = [line for line in outcome.out.splitlines() if "W&B" in line]
    assert len(lines) == 1 and "offline" in lines[0] and "wandb sync" in lines[0]
    folder = run_folder()
    (path,) = files(folder)
    run = written(path)
    name = "quadratic_port_hamiltonian_seed0"
    assert (run.run.display_name, run.run.job_type, run.run.run_group) == (name, "train", "")
    assert (run.run.notes, run.run.entity, run.run.project) == ("a note", "team", "ph_l2o")
    assert list(run.run.tags) == ["quadratic", "port_hamiltonian", "truncated", "mine"]
    assert run.config["meta"]["outer_steps"] == 4 and "git_revision" in run.config and "paths" not in run.config
    assert run.config["choices"]["task"] == "quadratic" and run.config["choices"]["debug"] == "default"
    assert run.exit_code == 0

    # Metrics of the training, over outer steps.
    assert run.metrics["train/*"] == run.metrics["diagnostics/*"] == ("outer_step", False)
    assert run.metrics["val/score"] == ("outer_step", True)
    steps = [row["outer_step"] for row in run.history if "train/outer_loss" in row]
    assert steps == [1, 2, 3, 4]
    for key in ("train/gradient_norm", "train/skipped_steps", "train/unroll_length", "train/task_steps_per_s"):
        assert len(run.column(key)) == 4, key
    for key in ("val/score", "val/quadratic/final_loss", "val/quadratic/auc", "diagnostics/energy_end",
                "diagnostics/lr/theta", "diagnostics/damping/theta"):  # fmt: skip
        assert len(run.column(key)) == 2, key
    assert run.summary["val/score"] == {"min": min(run.column("val/score"))}

    # Results of the comparison: numbers to sort by, curves over inner steps, the table, the picture.
    assert run.metrics["curves/*"] == ("inner_step", False)
    for optimizer in ("trained", "port_hamiltonian", "sgd"):
        assert len(run.column(f"curves/{optimizer}")) == 4
        for what in ("final", "final_low", "final_high", "final_median", "last10", "all", "diverged", "step_ms"):
            assert isinstance(run.summary[f"test/{optimizer}/{what}"], float)
    assert run.summary["test/trained/ratio_to_sgd"] == run.summary["test/port_hamiltonian/ratio_to_sgd"]
    assert run.summary["test/trained/ratio_to_best_baseline"] == pytest.approx(run.summary["test/trained/ratio_to_sgd"])
    assert run.summary["test/horizon"] == 3 and run.summary["test/comparison._type"] == "table-file"
    assert run.summary["test/curves._type"] == "image-file"
    assert (path.parent / "files" / "run.log").is_file()

    # The checkpoints, and the evaluation that uses one of them.
    models = [a for a in run.artifacts if a.type == "model"]
    assert [a.name for a in models] == [f"model-{run.run.run_id}"] * 2
    assert [set(a.aliases) for a in models] == [{"last", "latest"}, {"best", "latest"}]
    best = folder / "checkpoints" / "best.ckpt"
    small = ("horizon=4", "num_problems=2", "tuning_problems=2", "diagnostics=true")
    outcome = command("evaluate", f"optimizers=[{best}, sgd+cosine]", *small, "logger=wandb")
    assert outcome.code == 0, outcome.err
    (folder,) = tmp_path.glob("runs/20*/*_evaluate_quadratic")
    evaluation = written(files(folder)[0])
    assert evaluation.run.job_type == "evaluate" and list(evaluation.run.tags) == ["quadratic"]
    assert evaluation.exit_code == 0 and evaluation.config["horizon"] == 4
    (used,) = [a for a in evaluation.artifacts if a.type == "model"]
    assert used.use_after_commit and (used.name, used.digest) == (models[1].name, models[1].digest)
    assert not any(a.use_after_commit for a in models)
    mine = "quadratic_port_hamiltonian"
    assert len(evaluation.column(f"curves/{mine}")) == len(evaluation.column("curves/sgd_cosine")) == 5
    assert evaluation.summary[f"test/{mine}/ratio_to_sgd_cosine"] > 0
    assert len(evaluation.column(f"inner/{mine}/energy")) == len(evaluation.column(f"inner/{mine}/lr/theta")) == 4
    assert evaluation.metrics["inner/*"] == ("inner_step", False) and "val/score" not in evaluation.metrics


def test_a_suite(command, tmp_path):
    small = ("horizon=4", "num_problems=2", "optimizers=[port_hamiltonian,adam,sgd]")
    outcome = command("evaluate", "suite=generalise", "suite_tasks=[poisson]", *small, "logger=wandb")
    assert outcome.code == 0, outcome.err
    run = written(files(tmp_path / "runs")[0])
    assert run.run.job_type == "suite" and "generalise" in run.run.tags
    for key in ("ratio_to_adam", "ratio_to_best_baseline", "speed_up"):
        assert {f"suite/port_hamiltonian/{key}{end}" for end in ("", "_low", "_high", "_worst")} <= set(run.summary)
    assert run.summary["suite/adam/poisson/loss"] > 0 and "suite/sgd/poisson/ratio_to_adam" in run.summary
    assert len(run.column("curves/poisson/adam")) == 5
    assert run.summary["suite/comparison._type"] == "table-file"
    assert {k for k, v in run.summary.items() if v == "image-file"} == {
        f"suite/{n}._type" for n in ("curves", "ratios", "profile")
    }


def test_evaluations_log_nothing_unless_asked(command, tmp_path):
    command("evaluate", "optimizers=[sgd]", "horizon=2", "num_problems=2", "tuning_problems=2")
    assert not list(tmp_path.rglob("wandb*"))


def test_jobs_of_a_sweep_are_runs_of_their_own_in_one_group(command, tmp_path):
    swept = ("meta.learning_rate=0.001,0.00234567", "seed=2")
    outcome = command("train", "--multirun", *TINY, "compare=false", *swept, "logger.wandb.checkpoints=false")
    assert outcome.code == 0, outcome.err
    (sweep,) = [p for p in tmp_path.glob("runs/multirun/*/*") if p.is_dir()]
    runs = [written(path) for path in files(sweep)]
    assert len({run.run.run_id for run in runs}) == 2
    names = sorted(run.run.display_name for run in runs)
    assert names == [f"quadratic_port_hamiltonian_meta.learning_rate-{x}_seed2" for x in ("0.001", "0.00234567")]
    assert {run.run.run_group for run in runs} == {f"{sweep.parent.name}_{sweep.name}"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_.+", runs[0].run.run_group)
    assert [run.exit_code for run in runs] == [0, 0] and not any(run.artifacts for run in runs)
    assert [len(run.column("train/outer_loss")) for run in runs] == [4, 4]


STOPS = """
import pytorch_lightning as pl
from ph_l2o.errors import NonFiniteError

class Stops(pl.Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 3:
            raise NonFiniteError("stopped on purpose")
"""


def test_a_resumed_run_goes_on_without_double_points(command, run_folder, tmp_path, monkeypatch):
    """The run ends by an error one step after its checkpoint."""
    (tmp_path / "stopping.py").write_text(STOPS)
    monkeypatch.syspath_prepend(tmp_path)
    small = (*TINY, "compare=false", "plugins=[stopping]")
    assert command("train", *small, "+callbacks.stop={_target_: stopping.Stops}").code == 1
    folder = run_folder()
    run_id = (folder / "wandb_id").read_text()
    outcome = command(
        "train", f"ckpt_path={folder}/checkpoints/last.ckpt", "plugins=[stopping]", "+callbacks.stop=null"
    )
    assert outcome.code == 0, outcome.err
    assert (folder / "wandb_id").read_text() == run_id
    first, second = map(written, files(folder))
    assert (first.run.run_id, first.exit_code) == (second.run.run_id, second.exit_code + 1)
    rows = first.history + second.history
    for key, steps in {"train/outer_loss": [1, 2, 3, 4], "val/score": [2, 4]}.items():
        assert [row["outer_step"] for row in rows if key in row] == steps, key
    places = [row["_step"] for row in rows]
    assert places == sorted(set(places)), "rows are numbered through"
