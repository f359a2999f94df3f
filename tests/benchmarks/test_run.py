"""`benchmarks/run.py`: the command with its cheap groups, and what the groups measure with."""

import copy
import functools
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from _measure import contest
from _results import load
from suite import cases, fresh, probe_compile
from suite.outer_loop import Clock, Loop, Ours, timed

from ph_l2o.estimators import ESTIMATORS, Full, Truncated

ROOT = Path(__file__).parents[2]
CHEAP = ("optimizer_step", "tuning")


def run(*arguments: str) -> subprocess.CompletedProcess:
    call = [sys.executable, str(ROOT / "benchmarks" / "run.py"), *arguments]
    return subprocess.run(call, env=fresh.environment(1), capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A quick run of two groups: its result, and what it printed."""
    path = tmp_path_factory.mktemp("benchmarks") / "deep" / "results.json"
    done = run("--quick", "--only", ",".join(CHEAP), "--json", str(path))
    assert done.returncode == 0, done.stderr
    return load(path), done.stdout  # `load` checks the schema


def test_the_file_has_what_was_asked_for(smoke):
    result, _ = smoke
    assert tuple(result["groups"]) == CHEAP
    assert result["machine"]["torch"] == torch.__version__ and result["machine"]["threads"] == 1
    assert result["settings"]["quick"] and result["settings"]["repetitions"] == 2
    for group in result["groups"].values():
        assert group["entries"] and group["seconds"] > 0 and not group["error"] and not group["skipped"]
        assert all(len(e["values"]) == 2 and e["warm_up_seconds"] > 0 for e in group["entries"])


def test_ratios_are_of_the_same_repetition(smoke):
    """Recomputed from the values of both."""
    checked = 0
    for group in smoke[0]["groups"].values():
        by_name = {e["name"]: e for e in group["entries"]}
        for e in by_name.values():
            for other, found in e["ratios"].items():
                assert by_name[other]["is_reference"]
                expected = [a / b for a, b in zip(e["values"], by_name[other]["values"], strict=True)]
                assert found["values"] == pytest.approx(expected)
                checked += 1
    assert checked == 2 * 3 * len(cases.OPTIMIZERS) + 1  # two sizes, three optimizers of torch; one ratio of tuning


def test_tables_have_every_entry(smoke):
    result, text = smoke
    for name, group in result["groups"].items():
        assert f"\n## {name}\n" in text
        for e in group["entries"]:
            assert f"\n| {e['name']} | " in text


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--only", "speed"], "--only speed: must be of meta_training,"),
        (["--repetitions", "3"], "--repetitions 3: must be >= 5"),
        (["--quick", "--repetitions", "0"], "--repetitions 0: must be >= 1"),
        (["--threads", "0"], "--threads 0: must be >= 1"),
        (["--reference", "nowhere.py"], "--reference nowhere.py: no such file"),
    ],
)
def test_wrong_arguments(arguments, line, capsys):
    import run as command

    with pytest.raises(SystemExit) as caught:
        command.arguments_of(arguments)
    assert caught.value.code == 2 and line in capsys.readouterr().err.splitlines()[-1]


def test_a_group_that_fails_keeps_the_others(monkeypatch, capsys):
    import run as command
    import suite.tuning

    def fail(_):
        raise RuntimeError("no\nmore")

    monkeypatch.setattr(suite.tuning, "measured", fail)
    found = command.group("tuning", command.Options())
    assert found["error"] == "RuntimeError: no" and found["entries"] == []
    assert "RuntimeError" in capsys.readouterr().err


def test_contests_take_turns_and_skip_what_is_refused():
    calls: list[str] = []

    def measure(name: str, value: float) -> float:
        calls.append(name)
        return value

    def refuse() -> float:
        raise ValueError("estimator.x=1: must be 2\nand more")

    made = {"a": functools.partial(measure, "a", 6.0), "b": refuse, "c": functools.partial(measure, "c", 3.0)}
    found = contest(made, 3, unit="s", references=("c",))
    assert "".join(calls) == "ac" + "ac" + "ca" + "ac"
    assert found.skipped == {"b": "estimator.x=1: must be 2"}
    a, c = found.entries
    assert a["ratios"]["c"]["values"] == [2, 2, 2] and c["ratios"] == {}
    assert c["is_reference"] and not a["is_reference"]


@pytest.mark.parametrize(
    ("estimator", "outer_steps", "steps"),
    [
        (Truncated(), 4, 20 + 20 + 20 + 20),
        (Truncated(), 5, 100),
        (Full(), 3, 20 + 60 + 20),
    ],
)
def test_task_steps(estimator, outer_steps, steps):
    """Episodes of 20 and 60 inner steps in turn."""
    assert Loop(3, (20, 60), outer_steps, 20).task_steps(estimator) == 3 * steps


def test_all_estimators_are_covered():
    """Whatever the registry holds, with both orders of `truncated` and the window that was asked for."""
    made = {name: make() for name, make in cases.estimators().items()}
    assert {name.split()[0] for name in made} == set(ESTIMATORS)
    assert [made[f"truncated order {k}"].order for k in (1, 2)] == [1, 2]
    assert all(e.window_length(7, 7) == 7 for e in made.values())


@pytest.mark.parametrize(("has_compilation", "passed"), [(True, {"compile": "update"}), (False, {})])
def test_the_mode_of_compilation_is_passed_on_where_it_exists(monkeypatch, has_compilation, passed):
    import suite.outer_loop as outer_loop

    calls = []
    monkeypatch.setattr(outer_loop, "MetaLearner", lambda *_, **named: calls.append(named))
    monkeypatch.setattr(outer_loop, "HAS_COMPILATION", has_compilation)
    outer_loop.learner(cases.optimizer("adam"), cases.Quadratic(3), Truncated(), Loop(2, (4,), 3, 2), "update")
    assert calls == [passed]


def test_seconds_of_compiling_are_those_beyond_the_steady_state():
    assert probe_compile.beyond_steady_state([31.0, 1.0, 3.0, 1.0, 1.0]) == pytest.approx(32)


def test_all_directions_are_left_to_optimizers_with_few_meta_parameters():
    assert cases.refused("adam", f"forward {cases.ALL_DIRECTIONS}") is None
    assert "meta-parameters" in (cases.refused("lstm", f"forward {cases.ALL_DIRECTIONS}") or "")
    assert cases.refused("lstm", "pes") is None


def test_repetitions_train_the_same(tmp_path):
    """Same weights after each repetition, other ones than before: each trains, from the same start on the same
    problems.
    """
    ours = Ours(lambda: cases.optimizer("adam"), cases.Quadratic(3), Truncated, Loop(2, (4, 6), 3, 2))
    after = []
    for _ in range(2):
        assert ours() > 0
        after.append(copy.deepcopy(ours._learner.state_dict()))
    for name, value in after[0].items():
        assert torch.equal(value, after[1][name])
        if "log" in name:
            assert not torch.equal(value, ours._weights[name])


def test_the_clock_covers_every_outer_step_and_nothing_else():
    learner_of = Ours(lambda: cases.optimizer("adam"), cases.Quadratic(3), Truncated, Loop(2, (4,), 3, 2))
    learner_of()
    began = time.perf_counter()
    clock = timed(learner_of._learner)
    whole = time.perf_counter() - began
    assert isinstance(clock, Clock) and len(clock.began) == 3
    assert sum(clock.steps()) == pytest.approx(clock.seconds()) and clock.seconds() < whole
    assert clock.seconds(1) == pytest.approx(sum(clock.steps()[1:]))


def test_steps_that_are_skipped_are_no_measurement():
    ours = Ours(lambda: cases.optimizer("sgd"), cases.Quadratic(10), Truncated, Loop(2, (50,), 1, 50))
    with pytest.raises(RuntimeError, match="none of 1 outer steps had a finite meta-gradient"):
        ours()  # a learning rate of 0.1 diverges


def test_peak_memory_sees_the_graph(tmp_path):
    """What `full` keeps grows with the horizon, what `truncated` keeps does not."""
    case = {"optimizer": "adam", "task": "quadratic", "problems": 2048, "truncation": 10}
    asked = [
        {**case, "estimator": name, "horizon": horizon}
        for name in ("full", "truncated order 2")
        for horizon in (10, 100)
    ]
    full, longer, window, windows = (answer["mib"][0] for answer in fresh.peaks(asked, tmp_path, 1, 1))
    assert longer > 4 * full
    assert windows < 2 * window
    assert abs(full - window) < 0.5 * full


def test_a_probe_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match=r"^probe_mnist: .*data set mnist: .*missing"):
        fresh.ask("probe_mnist", {"data": str(tmp_path)}, threads=1)
