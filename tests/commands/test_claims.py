"""Claims of a study, tiny ones, through the real commands: trained, stopped, measured, told; and what is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ph_l2o.claims import kinds
from ph_l2o.claims.page import load_results, page
from ph_l2o.claims.spec import Claim, Training
from ph_l2o.commands import claim_trainings, run_claims

ROOT = Path(__file__).parents[2]
LONG = ["optimizer=adam", "task=quadratic_zeros", "meta.outer_steps=200", "meta.val_every=10", "meta.num_problems=2",
        "meta.horizons=[4]", "meta.truncation=2", "meta.val_problems=4", "meta.val_horizon=4"]  # fmt: skip
SHORT = [o.replace("adam", "sgd").replace("=200", "=10") for o in LONG]
CLAIM = {
    "title": "A tiny claim",
    "summary": "(z) tiny",
    "claimed": "It is tiny.",
    "trainings": {"short": SHORT, "long": LONG},
    "measurements": {
        "table": {
            "task": ["task=quadratic_zeros"], "horizon": 6, "num_problems": 8, "tuning_problems": 4,
            "reference": "tuned",
            "rows": {
                "short": {"training": "short", "recipe": "study", "published": 0.5},
                "long": {"training": "long"},
                "fixed": {"baseline": "adam@0.1", "label": "Adam .1"},
                "tuned": {"baseline": "sgd+best"},
                "elsewhere": {"baseline": "sgd", "tuned_on": ["task=quadratic", "task.dim=2"]},
            },
        }
    },
    "contrasts": [{"says": "Long is better", "measurement": "table", "row": "long", "below": ["fixed", "tuned"]}],
    "figure": {"says": "All.", "panels": [{"measurement": "table"}, {"measurement": "table", "draw": "intervals"}]},
}  # fmt: skip


def write(folder: Path, claim: dict) -> None:
    for group, content in (
        ("claim", f"# @package claims.tiny\n{json.dumps(claim)}"),
        ("experiment", "# @package _global_\ndefaults: [override /claim: tiny]\nrun_name: study_tiny\n"),
    ):
        path = folder / "conf" / group / ("tiny.yaml" if group == "claim" else "study_tiny.yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


WORDS = ("--config-dir", "conf", "experiment=study_tiny")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """What the first test leaves to those after it."""
    return tmp_path_factory.mktemp("kept")


def test_trainings_that_are_stopped_go_on_and_are_told(command, tmp_path, kept):
    """A command is ended in the middle of its second training; the same one goes on, bit for bit."""
    write(tmp_path, CLAIM)
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("Ours\n<!-- study -->\nformer\n<!-- /study -->\nend\n")
    made = command("train", *SHORT, "compare=false", "logger=csv", "hydra.run.dir=runs/study/short")
    assert made.code == 0, made.err  # a training is an ordinary run
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    rows = tmp_path / "runs" / "study" / "long" / "metrics.csv"
    call = [sys.executable, str(ROOT / "train.py"), *WORDS]
    with subprocess.Popen(call, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (rows.is_file() and rows.read_text().count("\n") > 12):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 143 and errors.startswith("interrupted by SIGTERM"), errors
    long, short = (tmp_path / "runs" / "study" / name for name in ("long", "short"))
    states = [json.loads((run / "status.json").read_text())["status"] for run in (short, long)]
    assert states == ["ok", "interrupted"]
    stopped = torch.load(long / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert 0 < stopped < 200
    before = (short / "checkpoints" / "best.ckpt").stat().st_mtime_ns

    outcome = command("train", *WORDS)
    assert outcome.code == 0, outcome.err
    assert "1 of 2 trainings are there" in outcome.out and "long: going on from its last checkpoint" in outcome.out
    assert (short / "checkpoints" / "best.ckpt").stat().st_mtime_ns == before
    whole = command("train", *LONG, "compare=false", "logger=csv", "hydra.run.dir=whole")
    assert whole.code == 0, whole.err
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(weights(long)[name], value)

    docs = tmp_path / "docs"
    text = (docs / "study.md").read_text()
    assert text == page(load_results(docs / "results" / "study"))
    assert "## A tiny claim" in text and "![A tiny claim](images/study_tiny.png)" in text and "| Adam .1 |" in text
    assert (docs / "images" / "study_tiny.png").stat().st_size > 10_000
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("Ours\n<!-- study -->\n\n| ") and "(z) tiny" in readme and "former" not in readme
    assert sorted(p.stem for p in (docs / "results" / "study" / "weights").iterdir()) == ["long", "short"]
    for name in ("runs", "docs", "conf"):
        shutil.copytree(tmp_path / name, kept / name)


@pytest.fixture
def there(tmp_path, kept, command) -> Path:
    """A folder in which everything is trained and measured."""
    for name in ("runs", "docs", "conf"):
        shutil.copytree(kept / name, tmp_path / name)
    return tmp_path


def counted(monkeypatch, at: int | None = None) -> list[str]:
    """Which rows are measured anew; the process is asked to end when that of number `at` begins."""
    done: list[str] = []
    original = kinds.KINDS["comparison"]

    def run(optimizer, task, **sizes):
        done.append(type(optimizer).__name__)
        if len(done) == at:
            signal.raise_signal(signal.SIGTERM)
        return original.run(optimizer, task, **sizes)

    monkeypatch.setitem(kinds.KINDS, "comparison", original._replace(run=run))
    return done


def numbers(folder: Path) -> dict:
    content = json.loads((folder / "docs" / "results" / "study" / "tiny.json").read_text())
    return {key: content[key] for key in ("measurements", "contrasts", "weights")}


def test_what_is_measured_is_read_back(there, command, monkeypatch):
    before, measured = numbers(there), counted(monkeypatch)
    outcome = command("evaluate", *WORDS)
    assert outcome.code == 0 and not measured, outcome.err
    assert numbers(there) == before


def test_an_evaluation_that_is_killed_goes_on(there, command, monkeypatch):
    before = numbers(there)
    shutil.rmtree(there / "runs" / "study" / "cache")
    with monkeypatch.context() as patch:
        counted(patch, at=3)
        assert command("evaluate", *WORDS).code == 143
    measured = counted(monkeypatch)
    outcome = command("evaluate", *WORDS)
    assert outcome.code == 0, outcome.err
    assert len(measured) == 3  # of five rows, two were kept
    assert numbers(there) == before


def test_a_fresh_clone_needs_the_weights_beside_the_results_alone(there, command, monkeypatch):
    before = numbers(there)
    shutil.rmtree(there / "runs")
    measured = counted(monkeypatch)
    outcome = command("evaluate", *WORDS)
    assert outcome.code == 0, outcome.err
    assert len(measured) == 5 and numbers(there) == before
    assert "2 of 2 trainings are there" in command("train", *WORDS).out  # nor is anything trained anew


def test_results_of_other_settings_are_never_mixed(there, command, monkeypatch):
    """More problems: all rows are measured again. Another row: it alone."""
    claim = json.loads(json.dumps(CLAIM))
    table = claim["measurements"]["table"]
    table["rows"]["another"] = {"baseline": "adam@0.2"}
    write(there, claim)
    measured = counted(monkeypatch)
    assert command("evaluate", *WORDS).code == 0
    assert measured == ["Adam"]
    table["num_problems"] = 9
    write(there, claim)
    assert command("evaluate", *WORDS).code == 0
    assert len(measured) == 1 + 6


def test_a_training_can_start_with_the_weights_of_another(command, tmp_path):
    """Its own steps are too short to be seen, so it has those weights; and is refused where they would be others."""
    second = {"overrides": [*(o.replace("=200", "=10") for o in LONG), "meta.learning_rate=1e-9"], "after": "first"}
    first = [o.replace("=200", "=20") for o in LONG]
    claim = CLAIM | {
        "trainings": {"first": first, "second": second}, "contrasts": [], "figure": {"says": "", "panels": []},
        "measurements": {"table": CLAIM["measurements"]["table"] | {"rows": {"second": {"training": "second"}}}},
    }  # fmt: skip
    del claim["measurements"]["table"]["reference"]
    write(tmp_path, claim)
    outcome = command("train", *WORDS, "num_processes=2")
    assert outcome.code == 0, outcome.err
    made = [weights(tmp_path / "runs" / "study" / name) for name in ("first", "second")]
    start = command("train", *first, "compare=false", "logger=csv", "meta.learning_rate=1e-9", "hydra.run.dir=start")
    assert start.code == 0
    begun = weights(tmp_path / "start")
    assert max((made[0][name] - value).abs().max() for name, value in begun.items()) > 1e-2
    for name in begun:
        torch.testing.assert_close(made[1][name], made[0][name], rtol=0, atol=1e-7)
    assert "2 of 2 trainings are there" in command("train", *WORDS).out

    write(tmp_path, claim | {"trainings": {"first": [*first, "seed=1"], "second": second}})
    shutil.rmtree(tmp_path / "runs" / "study" / "first")
    shutil.rmtree(tmp_path / "runs" / "study" / "cache", ignore_errors=True)
    assert command("train", *WORDS).error == (
        "runs/study/second: was run with other settings of weights.seed (0, now 1); move it away, or choose another "
        "place with paths.claims=FOLDER"
    )


def test_debug_keeps_which_training_starts_with_which():
    first, second = Training("first", ("optimizer=sgd",)), Training("second", ("optimizer=sgd",), after="first")
    claim = Claim("tiny", *[""] * 3, {"first": first, "second": second}, {}, (), (), "", "")
    tiny = run_claims._tiny(claim, "default", SimpleNamespace(num_problems=2, tuning_problems=2)).trainings
    assert tiny["second"] == Training("second", ("optimizer=sgd", "debug=default"), after="first")


def test_missing_checkpoints_are_named_with_the_command_that_makes_them(command, tmp_path, left_behind):
    write(tmp_path, CLAIM)
    before = left_behind()
    assert command("evaluate", *WORDS).error == (
        "claims: there are no weights of short, long; `python train.py experiment=study_tiny` trains what is missing"
    )
    assert left_behind() == before


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_a_run_with_other_settings_is_refused(there, command, name):
    write(there, CLAIM | {"trainings": {"short": SHORT, "long": [*LONG, "meta.learning_rate=0.5"]}})
    error = command(name, *WORDS).error
    assert error == (
        "runs/study/long: was run with other settings of meta.learning_rate (0.02, now 0.5); move it away, or choose "
        "another place with paths.claims=FOLDER"
    )


def test_weights_with_other_settings_are_refused(there, command):
    write(there, CLAIM | {"trainings": {"short": [*SHORT, "seed=1"], "long": LONG}})
    shutil.rmtree(there / "runs")
    assert command("evaluate", *WORDS).error == (
        "docs/results/study/weights/short.safetensors: was trained with other settings of seed (0, now 1); move it "
        "away, so that train.py makes another, or set the claim as it was"
    )


@pytest.mark.parametrize("where", ["measurements.table", "contrasts[0]", "figure.panels[1]"])
def test_a_measure_that_there_is_not_is_named_before_all_is_measured(there, command, monkeypatch, where):
    claim = json.loads(json.dumps(CLAIM))
    node = claim["measurements"]["table"] if where.startswith("m") else claim["contrasts"][0]
    key = "of" if where.startswith("f") else "measure"
    (claim["figure"]["panels"][1] if key == "of" else node)[key] = "finale"
    write(there, claim)
    before, measured = numbers(there), counted(monkeypatch)
    error = command("evaluate", *WORDS).error
    assert error.startswith(f"claims.tiny.{where}.{key}=finale: did you mean final?"), error
    assert len(measured) <= 1 and numbers(there) == before


@pytest.mark.parametrize("typed", ["claims.tiny.measurements.table.num_problems=9", "seed=1"])
def test_what_has_other_settings_does_not_replace_what_is_published(there, command, typed):
    before = {path: path.read_bytes() for path in (there / "docs").rglob("*") if path.is_file()}
    outcome = command("evaluate", *WORDS, typed)
    assert outcome.code == 0, outcome.err
    assert f"{typed}: the claims are not as they stand, so their page goes into the run's folder" in outcome.out
    assert {path: path.read_bytes() for path in (there / "docs").rglob("*") if path.is_file()} == before
    (made,) = (there / "runs").glob("*/*/study.md")
    assert page(load_results(made.parent / "results" / "study")) == made.read_text()


def test_another_place_of_the_page_needs_no_other_weights(there, command):
    shutil.rmtree(there / "runs")
    weights = there / "elsewhere" / "results" / "study" / "weights"
    weights.mkdir(parents=True)
    shutil.move(there / "docs" / "results" / "study" / "weights" / "long.safetensors", weights)
    outcome = command("evaluate", *WORDS, "paths.docs=elsewhere")
    assert outcome.code == 0, outcome.err
    assert (there / "elsewhere" / "study.md").is_file()
    assert sorted(path.stem for path in weights.iterdir()) == ["long", "short"]


@pytest.mark.parametrize("name", ["claims", "docs"])
def test_a_place_that_is_no_folder_is_refused_before_anything_is_made(there, command, left_behind, name):
    (there / "file").touch()
    before = left_behind()
    assert command("evaluate", *WORDS, f"paths.{name}=file").error == f"paths.{name}=file: is no folder; choose another"
    assert left_behind() == before


def test_two_commands_do_not_measure_the_same(there, command):
    lock = run_claims.hold(there / "runs" / "study" / ".evaluation.lock", "")
    try:
        assert "runs/study: claims are measured here already; wait until that ends" in command("evaluate", *WORDS).error
    finally:
        lock.release()


def test_trainings_that_fail_are_told_in_one_line(command, tmp_path, monkeypatch):
    """The others are run all the same."""
    write(tmp_path, CLAIM)
    monkeypatch.setattr(claim_trainings, "_START", "import sys; sys.exit(f'warned\\nerror: no room for {sys.argv[4]}')")
    error = command("train", *WORDS, "num_processes=2").err.strip().splitlines()[-1]
    assert error == (
        "error: claims: the training short failed (so did 1 more): no room for optimizer=sgd; the same command goes on"
    )


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("evaluate", ["optimizers=[adam]"], "optimizers=[adam]: is not taken by claims"),
        ("train", ["optimizer=lstm"], "optimizer=lstm: is not taken by claims"),
        ("train", ["meta.outer_steps=3"], "meta.outer_steps=3: is not taken by claims"),
        ("train", ["num_processes=0"], "num_processes=0: must be a whole number >= 1"),
        ("train", ["claims.tiny.measurements.table.horizon=0"], "claims.tiny.measurements.table.horizon=0: must be"),
        ("train", ["+claims.tiny.trainings.more={overrides: [], after: nobody}"], "claims.tiny.trainings.more.after="),
        ("evaluate", ["claims.tiny.contrasts=[1]"], "claims.tiny.contrasts[0]=1: must have the keys says"),
    ],
)
def test_bad_input_is_one_line(command, tmp_path, name, words, message):
    write(tmp_path, CLAIM)
    assert command(name, *WORDS, *words).error.startswith(message)
