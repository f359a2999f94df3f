"""`evaluate.py num_processes=N`: the results of one process, and what happens when a process is lost."""

import csv
import json
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image
from test_workers import is_running, wait_until

ROOT = Path(__file__).parents[2]
SMALL = ("horizon=5", "num_problems=3", "tuning_problems=2")
COMPARISON = (
    *SMALL, "plugins=[evaluated_elsewhere]", "task._target_=evaluated_elsewhere.WithLambda",
)  # fmt: skip
SUITE = (*SMALL, "suite=generalise", "optimizers=[sgd, adam+untuned]")
_TIME = r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d,\d+|\((?:cached|\d+\.\d s)\)"


def without_times(value):
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if not k.endswith("seconds")}
    return list(map(without_times, value)) if isinstance(value, list) else value


def content(path: Path) -> object:
    """What a file holds, but for times and what tells them; of a log, the lines of the results."""
    if path.suffix == ".json":
        return without_times(json.loads(path.read_text()))
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return [without_times(row) for row in csv.DictReader(file)]
    if path.suffix == ".log":
        lines = path.read_text().splitlines()
        return [re.sub(_TIME, "", line) for line in lines if " tuned on " in line or ": final loss" in line]
    return path.suffix == ".png" and np.rint(255 * image.imread(path)[..., :3])


def files(folder: Path) -> dict[str, object]:
    skipped = ("config.yaml", ".hydra")  # they name folders, and the number of processes
    found = [p for p in folder.rglob("*") if p.is_file() and not p.relative_to(folder).parts[0].startswith(skipped)]
    return {str(p.relative_to(folder)): content(p) for p in found}


def same(folder: Path, *others: str) -> dict[str, object]:
    first, *rest = (files(folder / name) for name in others)
    assert first
    for other in rest:
        assert other.keys() == first.keys()
        for name, what in first.items():
            if isinstance(what, np.ndarray):  # a picture's layout is a solver's, which rounds as it happens to
                np.testing.assert_allclose(other[name], what, atol=3, err_msg=name)
            else:
                assert other[name] == what, name
    return first


def test_a_killed_process_ends_it_in_one_line_and_the_same_command_gives_the_results_of_one(command, tmp_path):
    """The task cannot be pickled; there are more processes than optimizers."""
    typed = (*COMPARISON, "optimizers=[deadly, sgd]", "paths.cache=cache")
    outcome = command("evaluate", *typed, "num_processes=2", "hydra.run.dir=killed_run")
    assert re.fullmatch(
        r"num_processes=2: process \d+ was ended by SIGKILL, as by the system when memory runs out; what is finished "
        "is in the cache, and the same command goes on from there",
        outcome.error,
    )
    assert not multiprocessing.active_children()
    assert json.loads((tmp_path / "killed_run" / "status.json").read_text())["status"] == "error"
    (kept,) = (tmp_path / "cache").iterdir()

    outcome = command("evaluate", *typed, "num_processes=9", "hydra.run.dir=run9")
    assert outcome.code == 0 and not outcome.err, outcome.err
    assert "sgd tuned on 2 validation problems of quadratic (cached)" in outcome.out
    assert len(list((tmp_path / "cache").iterdir())) == 2 and kept.is_file()
    assert not multiprocessing.active_children()

    (tmp_path / "cache1").mkdir()
    (tmp_path / "cache1" / kept.name).write_bytes(kept.read_bytes())
    assert command("evaluate", *typed, "paths.cache=cache1", "hydra.run.dir=run1").code == 0
    assert set(same(tmp_path, "run1", "run9")) == {
        "comparison.csv", "comparison.json", "curves.csv", "curves.png", "report.html", "run.log", "status.json",
    }  # fmt: skip
    same(tmp_path, "cache", "cache1")


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "true", "null"])
def test_a_number_of_processes_is_a_whole_one_from_1(command, left_behind, value):
    line = command("evaluate", f"num_processes={value}").error
    shown = {"two": "'two'", "true": "True", "null": "None"}.get(value, value)
    assert line.startswith(f"num_processes={shown}: must be ") and line.endswith(">= 1 (processes)")
    assert left_behind() == []


def start(folder: Path, *typed: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(Path(__file__).parent), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    command = [sys.executable, str(ROOT / "evaluate.py"), *typed]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def evaluate(folder: Path, *typed: str) -> str:
    with start(folder, *typed) as process:
        out, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    return out


def workers(process: subprocess.Popen[str]) -> list[int]:
    """Those that have begun to work: they have imported torch."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(i) for i in children if "libtorch_cpu" in Path(f"/proc/{i}/maps").read_text()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(("number", "to_all", "code", "line"), [
    (signal.SIGINT, True, 130, "interrupted by SIGINT"),
    (signal.SIGHUP, True, 129, "interrupted by SIGHUP"),
    (signal.SIGTERM, False, 143, "interrupted by SIGTERM"),
    (signal.SIGKILL, False, -9, None),
])  # fmt: skip
def test_all_processes_end_with_the_command(tmp_path, number, to_all, code, line):
    """Ctrl-C and a terminal that is closed send their signal to all of them."""
    typed = ("horizon=100000", "num_problems=3", "tuning_problems=4", "optimizers=[sgd, adam]", "num_processes=2")
    with start(tmp_path, *typed) as process:
        wait_until(lambda: process.poll() is not None or len(workers(process)) == 2)
        time.sleep(1)
        found = workers(process)
        (os.killpg if to_all else os.kill)(process.pid, number)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == code
    wait_until(lambda: not any(map(is_running, found)))
    assert len(found) == 2
    if line is not None:
        assert errors.splitlines() == [line]


SCALING = (ROOT / "docs" / "scaling.md").read_text()


@pytest.mark.slow
def test_tasks_of_a_suite_as_jobs_are_assembled_to_what_one_process_finds(tmp_path):
    """The commands of docs/scaling.md, with a launcher of this machine, two processes in a job, and small sizes."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    sweep, together = [shlex.split(line)[2:] for line in SCALING.splitlines() if "suite=generalise" in line]
    jobs = [word for word in sweep if not word.startswith(("hydra", "suite_tasks="))]
    assert together == ["num_processes=8", "suite=generalise"] and jobs == ["--multirun", *together]
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=1", "num_processes=2")
    evaluate(tmp_path, "--multirun", *launcher, *SUITE, "suite_tasks=[digits_softmax],[diabetes_huber]")
    (table,) = tmp_path.glob("runs/multirun/*/*/summary.csv")
    with table.open(newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["ok", "ok"]
    kept = files(tmp_path / "runs" / "cache")
    assert len(kept) == 6  # of sgd's tuning, and two runs, on each task
    both = "suite_tasks=[digits_softmax, diabetes_huber]"
    evaluate(tmp_path, *SUITE, both, "num_processes=8", "hydra.run.dir=assembled")
    assert files(tmp_path / "runs" / "cache") == kept
    evaluate(tmp_path, *SUITE, both, "hydra.run.dir=alone", "paths.cache=alone_cache")
    assert {"suite.json", "suite.csv", "suite_ratios.png"} <= set(same(tmp_path, "assembled", "alone"))
    assert files(tmp_path / "alone_cache") == kept
