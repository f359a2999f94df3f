"""`hparams_search=…`: trials, their study, what is pruned or fails, and several processes on one study."""

import csv
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from wandb_stand_ins import files, written

from ph_l2o.commands.searches.study import open_study
from ph_l2o.meta import MetaLearner

ROOT = Path(__file__).parents[2]
TINY = ("debug=default", "optimizer=sgd")
SEARCH = ("hparams_search=optuna", *TINY)
PARALLEL = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_jobs=2")
HOPELESS = ("hydra.sweeper.pruner._target_=optuna.pruners.ThresholdPruner", "+hydra.sweeper.pruner.upper=0")


def named(name, trials):
    return f"hydra.sweeper.study_name={name}", f"hydra.sweeper.n_trials={trials}"


def study(tmp_path, name):
    with (tmp_path / "runs" / "searches" / name / "study.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def folders(tmp_path, name):
    return sorted(p.name for p in (tmp_path / "runs" / "searches" / name).iterdir() if p.is_dir())


def settings(rows):
    return [{k: v for k, v in row.items() if k not in ("seconds", "folder")} for row in rows]


def test_a_search_and_the_command_that_it_ends_with(command, tmp_path):
    outcome = command("train", *SEARCH, *named("one", 2))
    assert outcome.code == 0, outcome.err
    rows = study(tmp_path, "one")
    assert [row["status"] for row in rows] == ["ok", "ok"]
    assert (tmp_path / "runs/searches/one/study.png").read_bytes().startswith(b"\x89PNG")
    best = min(rows, key=lambda row: float(row["val/score"]))
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("train like it: ")]
    assert f"best: trial {best['trial']}, val/score={float(best['val/score']):.6g}" in outcome.out
    words = shlex.split(line.partition(": python train.py ")[2])
    assert f"meta.learning_rate={best['meta.learning_rate']}" in words
    again = command("train", *words, "compare=false")
    assert again.code == 0, again.err
    (metrics,) = tmp_path.glob("runs/20*/*/metrics.csv")
    with metrics.open(newline="") as file:
        scores = [float(row["val/score"]) for row in csv.DictReader(file) if row["val/score"]]
    assert min(scores) == pytest.approx(float(best["val/score"]), rel=1e-6)

    before = folders(tmp_path, "one")
    outcome = command("train", *SEARCH, *named("one", 2))
    assert "best: trial" in outcome.out and folders(tmp_path, "one") == before, "there is nothing left to do"
    assert command("train", *SEARCH, *named("one", 3)).code == 0
    assert len({row["meta.learning_rate"] for row in study(tmp_path, "one")}) == 3

    journal = tmp_path / "runs/searches/one/study.journal"
    content = journal.read_bytes()
    for typed, told in (
        (("seed=1",), "was begun without seed=1"),
        (("meta.learning_rate=0.1",), "meta.learning_rate was varied by {"),
        (
            ("meta.gradient_clip=choice(1,2)",),
            "meta.gradient_clip was varied by {choices: [0.1, 0.3, 1.0]}, and is now",
        ),
    ):
        error = command("train", *SEARCH, *named("one", 9), *typed).error
        assert error.startswith("hydra.sweeper.study_name=one: ") and told in error
    assert journal.read_bytes() == content
    journal.write_bytes(content + b'{"half": ')  # of a full disk
    assert command("train", *SEARCH, *named("one", 3)).code == 0 and journal.read_bytes() == content
    journal.write_bytes(b"nonsense\n")
    assert "study.journal: is no study" in command("train", *SEARCH, *named("one", 3)).error


@pytest.mark.slow
def test_hopeless_trials_are_pruned(command, tmp_path):
    """A step size of almost 0 learns nothing from the start."""
    typed = ["+hydra.sweeper.pruner.n_startup_trials=1", "optimizer.lr=choice(1e-6,0.003)", "meta.gradient_clip=1"]
    outcome = command("train", *SEARCH, *typed, *named("p", 6))
    assert outcome.code == 0, outcome.err
    rows = study(tmp_path, "p")
    pruned = [row for row in rows if row["status"] == "pruned"]
    assert pruned and {row["optimizer.lr"] for row in pruned} == {"1e-06"}
    assert len(rows) == 6 and f"{len(pruned)} pruned" in outcome.out
    for row in pruned:
        folder = tmp_path / "runs/searches/p" / row["folder"]
        assert '"pruned"' in (folder / "status.json").read_text()
        assert len((folder / "metrics.csv").read_text().splitlines()) == 3, "of 4 outer steps, it made 2"
        assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert "pruned" in (tmp_path / "runs/searches/p/summary.csv").read_text()


@pytest.mark.slow
def test_trials_in_other_processes_are_pruned(command, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    outcome = command("train", *SEARCH, *HOPELESS, *PARALLEL, *named("j", 3))
    assert outcome.code == 0, outcome.err
    assert [row["status"] for row in study(tmp_path, "j")] == ["pruned"] * 3
    assert "none of 3 trials (3 pruned) has a finite score" in outcome.out


def test_a_trial_in_wandb(command, tmp_path, monkeypatch):
    """Its name has the trial's values, its group is the study, and one that is pruned has not failed."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    fixed = ("meta.gradient_clip=1", "logger=wandb")
    outcome = command("train", *SEARCH, *HOPELESS, *fixed, *named("w", 1))
    assert outcome.code == 0, outcome.err
    (row,) = study(tmp_path, "w")
    (path,) = files(tmp_path / "runs")
    run = written(path)
    assert run.run.display_name == f"quadratic_sgd_meta.learning_rate-{row['meta.learning_rate']}_seed0"
    assert (run.run.run_group, run.run.job_type, run.exit_code, run.summary["pruned_at"]) == ("w", "train", 0, 2)


def breaking(monkeypatch):
    """The second trial fails, and the third learns nothing."""
    original = MetaLearner.training_step

    def breaks(self, batch, batch_idx):
        number = Path(self.trainer.default_root_dir).name.partition("_")[0]
        if number == "1":
            raise OSError(28, "No space left on device", "metrics.csv")
        loss = original(self, batch, batch_idx)
        return loss * float("nan") if number == "2" else loss

    monkeypatch.setattr(MetaLearner, "training_step", breaks)


def test_failures_are_recorded(command, tmp_path, monkeypatch):
    breaking(monkeypatch)
    outcome = command("train", *SEARCH, "hydra.sweeper.max_failure_rate=1", *named("f", 3))
    assert outcome.code == 0, outcome.err
    rows = study(tmp_path, "f")
    assert [row["status"] for row in rows] == ["ok", "error", "diverged"]
    assert "No space left on device" in rows[1]["error"] and rows[2]["val/score"] == "1000000.0"
    assert "3 trials: 1 ok, 1 error, 1 diverged" in outcome.out


def test_a_failure_that_is_not_tolerated_ends_the_search(command, tmp_path, monkeypatch):
    """What failed is tried again by the same command."""
    with monkeypatch.context() as broken:
        breaking(broken)
        outcome = command("train", *SEARCH, *named("f", 3))
    told = outcome.err.strip().splitlines()[-1]
    assert outcome.code == 1 and told.startswith("error: trial 1: metrics.csv: No space left on device")
    assert "1 of 1 trials failed, more than hydra.sweeper.max_failure_rate=0.0" in told
    config = tmp_path / "runs/searches/f/1_quadratic_sgd/config.yaml"
    saved = config.read_text()
    config.write_text(saved.replace("outer_steps: 4", "outer_steps: 5"))
    error = command("train", *SEARCH, *named("f", 3)).err.strip().splitlines()[-1]
    assert error.startswith("error: 1_quadratic_sgd: was run with other settings of meta; start a new sweep")
    config.write_text(saved)
    assert command("train", *SEARCH, *named("f", 3)).code == 0
    assert [row["status"] for row in study(tmp_path, "f")] == ["ok"] * 3
    assert len(folders(tmp_path, "f")) == 3


def test_a_search_that_is_asked_to_end_goes_on(command, tmp_path, monkeypatch):
    """The scores are those of one that was not."""
    original = MetaLearner.training_step

    def asked(self, batch, batch_idx):
        if Path(self.trainer.default_root_dir).name.startswith("1_") and self.global_step == 2:
            signal.raise_signal(signal.SIGTERM)
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(MetaLearner, "training_step", asked)
        outcome = command("train", *SEARCH, *named("s", 2))
    assert outcome.code == 128 + signal.SIGTERM
    told = "interrupted by SIGTERM; the same command with hydra.sweeper.study_name=s goes on"
    assert outcome.err.strip().splitlines() == [told]
    outcome = command("train", *SEARCH, *named("s", 2))
    assert outcome.code == 0, outcome.err
    assert "resuming from" in outcome.out and folders(tmp_path, "s") == ["0_quadratic_sgd", "1_quadratic_sgd"]
    assert command("train", *SEARCH, *named("whole", 2)).code == 0
    assert settings(study(tmp_path, "s")) == settings(study(tmp_path, "whole"))


def started(tmp_path, *arguments):
    """A process with a group of its own, which Ctrl-C stops also where it does not stop the tests."""
    path = os.pathsep.join([str(Path(__file__).parent), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(ROOT / "train.py"), *arguments]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)


def is_underway(folder, since):
    """Whether a trial was begun since then, and has a checkpoint."""
    status = folder / "status.json"
    has_begun = status.is_file() and status.stat().st_mtime > since and '"running"' in status.read_text()
    return has_begun and (folder / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [(), PARALLEL], ids=["basic", "joblib"])
def test_a_search_that_is_stopped_goes_on(command, tmp_path, launcher):
    """Once by Ctrl-C in its first trial, once killed in its second; the scores are those of one that was not."""
    if launcher:
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    long = (*SEARCH, "meta.outer_steps=160", "meta.val_every=20")
    launched = (*long, *launcher, *named("s", 2))
    for trial, number in ((0, signal.SIGINT), (1, signal.SIGKILL)):
        folder = tmp_path / f"runs/searches/s/{trial}_quadratic_sgd"
        began = time.time()
        process = started(tmp_path, *launched)
        try:
            while process.poll() is None and not is_underway(folder, began):
                time.sleep(0.02)
            os.killpg(process.pid, number)
            out, _ = process.communicate(timeout=300)
        finally:
            process.kill()
            process.communicate()
        assert process.returncode == (130 if number == signal.SIGINT else -number), out
        if number == signal.SIGINT:
            told = "interrupted by SIGINT; the same command with hydra.sweeper.study_name=s goes on"
            assert out.strip().splitlines()[-1] == told
    process = started(tmp_path, *launched)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert "resuming from" in out and len(folders(tmp_path, "s")) == 2
    assert command("train", *long, *named("whole", 2)).code == 0
    assert settings(study(tmp_path, "s")) == settings(study(tmp_path, "whole"))


@pytest.mark.slow
def test_jobs_of_a_parallel_launcher_get_into_trouble(tmp_path):
    """Trial 1 fails, 2 is killed, and 3 learns nothing."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    trouble = ("plugins=[trouble]", "+callbacks.trouble={_target_:trouble.Trouble,seed:${hydra:sweeper.trial}}")
    typed = (*SEARCH, *trouble, *PARALLEL, "hydra.sweeper.max_failure_rate=1", *named("t", 4))
    process = started(tmp_path, *typed)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    rows = study(tmp_path, "t")
    assert [row["status"] for row in rows] == ["ok", "error", "error", "diverged"]
    assert "No space left on device" in rows[1]["error"]
    assert rows[2]["error"] == "its process was ended by SIGKILL, as by the system when memory runs out"


CLAIMING = """
import os, signal, sys, time
from pathlib import Path
from types import SimpleNamespace

from ph_l2o.commands.searches.search_space import read_space
from ph_l2o.commands.searches.study import SharedStudy, check_installed

check_installed()
folder, dies_at = Path(sys.argv[1]), int(sys.argv[2])
sampler = {"_target_": "optuna.samplers.TPESampler", "seed": 0}
shared = SharedStudy(folder, read_space({"x": "interval(0, 1)"}, [], None), sampler)
told = 0
with shared.joined():
    while trials := shared.claim(2, 30):
        if told >= dies_at:
            (folder / "dying").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        for trial in trials:
            time.sleep(0.02)
            shared.tell(trial.number, SimpleNamespace(status="ok", score=trial.params["x"], error=""))
            print(trial.number, flush=True)
            told += 1
        while 4 <= told < dies_at and not (folder / "dying").exists():  # else all could be done before it comes so far
            time.sleep(0.01)
"""


def test_processes_share_a_study_though_one_is_killed(tmp_path):
    """No trial is told twice, and the trials of the one that is killed are run by others."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-c", CLAIMING, str(tmp_path)]
    processes = [
        subprocess.Popen([*call, dies_at], env=environment, stdout=subprocess.PIPE, text=True)
        for dies_at in ("99", "99", "4")
    ]
    numbers = [process.communicate(timeout=300)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, -signal.SIGKILL]
    assert sorted(int(number) for found in numbers for number in found) == list(range(30))
    trials = open_study(tmp_path).get_trials()
    assert len({trial.params["x"] for trial in trials}) == 30 and all(trial.state.is_finished() for trial in trials)


@pytest.mark.slow
def test_two_processes_share_a_study(tmp_path):
    typed = (*SEARCH, *named("both", 4))
    processes = [started(tmp_path, *typed) for _ in range(2)]
    try:
        outputs = [process.communicate(timeout=540)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [process.returncode for process in processes] == [0, 0], outputs
    launched = [line.split()[0] for out in outputs for line in out.splitlines() if line.startswith("\t#")]
    assert sorted(launched) == [f"#{k}" for k in range(4)], "each trial was run once"
    rows = study(tmp_path, "both")
    assert [row["status"] for row in rows] == ["ok"] * 4
    assert len({row["meta.learning_rate"] for row in rows}) == 4


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["meta.learning_rte=interval(1,2)"], "meta.learning_rte: no such key; did you mean meta.learning_rate"),
        (["meta.learning_rate=interval(2,1)"], "meta.learning_rate=interval(2,1): the lower end must be below"),
        (["meta.learning_rate=tag(log,interval(0,1))"], "on a log scale, the lower end must be > 0"),
        (["estimator=choice(pes,truncatd)"], "estimator=truncatd: no such option"),
        (["meta.learning_rate=1", "meta.gradient_clip=1"], "hydra.sweeper.params: nothing is varied"),
        (["hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0: must be >= 1"),
        (["hydra.sweeper.study_name=a/b"], "hydra.sweeper.study_name=a/b: must be a name"),
        (["hydra.sweeper.max_failure_rate=2"], "hydra.sweeper.max_failure_rate=2: must be in [0, 1]"),
        (
            ["hydra.sweeper.sampler._target_=os.system"],
            "hydra.sweeper.sampler._target_=os.system: must be one of optuna.",
        ),
        (["+hydra.sweeper.pruner.x=1"], "hydra.sweeper.pruner: MedianPruner: "),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_can_not_be_searched_is_said_before_any_work(command, left_behind, typed, told):
    assert told in command("train", *SEARCH, *typed).error
    assert left_behind() == []


def test_the_missing_extra_is_named(command, left_behind, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "pip install 'ph-l2o[sweep]'" in command("train", "hparams_search=optuna").error
    assert left_behind() == []


DOCS = [line for line in (ROOT / "docs" / "search.md").read_text().splitlines() if line.startswith("python train.py")]


@pytest.mark.slow
@pytest.mark.parametrize("line", DOCS, ids=lambda line: line.removeprefix("python train.py hparams_search="))
def test_the_documentation_runs_as_written(command, mnist_root, tmp_path, line):
    small = ("debug=default", "meta.horizons=[20]", "hydra.sweeper.n_trials=1", f"paths.data={mnist_root}")
    outcome = command("train", *shlex.split(line)[2:], *small)
    assert outcome.code == 0, outcome.err
    assert "best: trial 0, val/score=" in outcome.out
    assert len(list(tmp_path.glob("runs/searches/*/study.png"))) == 1


def test_the_documentation_has_commands():
    assert len(DOCS) == 11
