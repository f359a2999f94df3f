"""`evaluate.py num_processes=2`: the same results as of one process, and what happens when one is killed."""

import json
import multiprocessing
import os
import signal
import threading
import time

import pytest

SMALL = ("horizon=5", "num_problems=3", "tuning_problems=2")
KINDS = {
    "comparison": ("task=quadratic", "optimizers=[port_hamiltonian, adam, sgd+cosine]"),
    "suite": ("suite=generalise", "suite_tasks=[digits_softmax, poisson]", "optimizers=[port_hamiltonian, adam]"),
}


def without_times(value):
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if not k.endswith("seconds")}
    return list(map(without_times, value)) if isinstance(value, list) else value


@pytest.mark.parametrize("kind", KINDS)
def test_the_results_are_those_of_one_process(command, tmp_path, kind):
    for count in (1, 2):
        where = (f"paths.cache=cache{count}", f"hydra.run.dir=run{count}", f"num_processes={count}")
        outcome = command("evaluate", *SMALL, *KINDS[kind], *where)
        assert outcome.code == 0, outcome.err
    one, two = (without_times(json.loads((tmp_path / f"run{k}" / f"{kind}.json").read_text())) for k in (1, 2))
    assert one == two
    files = [sorted(p.relative_to(tmp_path / f"cache{k}") for p in (tmp_path / f"cache{k}").rglob("*")) for k in (1, 2)]
    assert files[0] == files[1] and len(files[0]) >= 2
    assert {p.name for p in (tmp_path / "run1").iterdir()} == {p.name for p in (tmp_path / "run2").iterdir()}
    for a, b in zip(*[[tmp_path / f"cache{k}" / f for f in files[0]] for k in (1, 2)], strict=True):
        if a.is_file():
            assert without_times(json.loads(a.read_text())) == without_times(json.loads(b.read_text()))


def test_a_process_that_is_killed_ends_the_evaluation_in_one_line(command, tmp_path):
    def kill():
        while not (found := multiprocessing.active_children()):
            time.sleep(0.01)
        os.kill(found[0].pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    outcome = command("evaluate", *SMALL, *KINDS["comparison"], "num_processes=2", "paths.cache=cache")
    thread.join()
    assert outcome.error.startswith("num_processes=2: a process was killed")
    assert not multiprocessing.active_children()
    assert command("evaluate", *SMALL, *KINDS["comparison"], "paths.cache=cache").code == 0


def test_a_number_of_processes_is_at_least_1(command, left_behind):
    assert command("evaluate", "num_processes=0").error == "num_processes=0: must be >= 1 (processes)"
    assert left_behind() == []
