"""`benchmarks/compare.py` on constructed result files."""

import copy
import json
from pathlib import Path

import compare
import pytest
from _measure import entry, summary
from _results import SCHEMA, check

MACHINE = {"words": "a machine", "threads": 1, "torch": "2.14.1", "python": "3.11.7"}
STEADY = [99.0, 100.0, 101.0, 100.0, 100.0]


def result(*entries: dict, **machine: object) -> dict:
    group = {"about": "What it is.", "seconds": 1.0, "entries": list(entries), "skipped": {}, "error": None}
    made = {
        "schema": SCHEMA,
        "machine": MACHINE | machine,
        "settings": {"repetitions": 5, "quick": False},
        "groups": {"speed": group},
    }
    check(made)
    return made


def measured(values: list[float], name: str = "inner", unit: str = "task-steps/s", better: str = "higher") -> dict:
    return entry(name, values, unit=unit, better=better)


def scaled(factor: float) -> list[float]:
    return [factor * v for v in STEADY]


@pytest.fixture
def compared(tmp_path, capsys):
    """Writes two files, compares them: exit status, lines."""

    def run(old: dict, new: dict, *arguments: str) -> tuple[int, list[str]]:
        paths = []
        for name, content in (("old", old), ("new", new)):
            paths.append(tmp_path / f"{name}.json")
            paths[-1].write_text(json.dumps(content))
        status = compare.main([*map(str, paths), *arguments])
        return status, capsys.readouterr().out.splitlines()

    return run


def verdicts(lines: list[str]) -> list[str]:
    return [line.split(" | ")[-1].rstrip(" |") for line in lines if line.startswith("| speed")]


@pytest.mark.parametrize(
    ("unit", "better", "factor", "verdict", "status"),
    [
        ("task-steps/s", "higher", 0.8, "slower", 1),
        ("task-steps/s", "higher", 1.25, "faster", 0),
        ("ms", "lower", 1.25, "slower", 1),
        ("ms", "lower", 0.8, "faster", 0),
        ("MiB", "lower", 1.25, "more memory", 1),
        ("MiB", "lower", 0.8, "less memory", 0),
    ],
)
def test_beyond_noise_is_found(compared, unit, better, factor, verdict, status):
    old, new = (result(measured(v, unit=unit, better=better)) for v in (STEADY, scaled(factor)))
    found, lines = compared(old, new)
    assert found == status
    assert verdicts(lines) == [verdict]
    (row,) = [line for line in lines if line.startswith("| speed")]
    assert "speed: inner" in row and f"{100 * (factor - 1):+.0f} %" in row


def test_noise_is_not_reported(compared):
    """Neither where ranges overlap though medians are far apart, nor where they do not and medians are close."""
    wide = [60.0, 65.0, 70.0, 75.0, 99.5]
    for values in (wide, scaled(0.95)):
        status, lines = compared(result(measured(STEADY)), result(measured(values)))
        assert (status, verdicts(lines)) == (0, [])
        assert lines[-1].startswith("1 entries compared: 0 worse, 0 better, 1 within noise")


def test_the_threshold_is_the_caller_s(compared):
    old, new = result(measured(STEADY)), result(measured(scaled(0.95)))
    assert compared(old, new, "--threshold", "0.04")[0] == 1
    assert compared(old, new, "--threshold", "0.06")[0] == 0


def test_all_shows_noise_too(compared):
    _, lines = compared(result(measured(STEADY)), result(measured(STEADY)), "--all")
    assert verdicts(lines) == ["same"]


def test_a_factor_in_speed_counts_the_same_both_ways(compared):
    """Half as fast is as far beyond a threshold of 90 % as twice as fast is."""
    for factor in (0.5, 2.0):
        _, lines = compared(result(measured(STEADY)), result(measured(scaled(factor))), "--threshold", "0.9")
        assert len(verdicts(lines)) == 1


def with_ratio(values: list[float], ratios: list[float]) -> dict:
    return measured(values) | {"ratios": {"script": summary(ratios)}}


def test_ratios_are_preferred(compared):
    """On a machine half as fast the ratio is the same; and a ratio that fell is found whatever the machine did."""
    old = result(with_ratio(STEADY, scaled(0.012)))
    assert compared(old, result(with_ratio(scaled(0.5), scaled(0.012))))[0] == 0
    status, lines = compared(old, result(with_ratio(scaled(2), scaled(0.008))))
    assert status == 1 and verdicts(lines) == ["slower"] and any("× script" in line for line in lines)
    assert compared(old, result(measured(scaled(0.5))))[0] == 1  # the new file has no ratio


def test_references_are_not_judged(compared):
    old, new = (result(measured(v) | {"is_reference": True}) for v in (STEADY, scaled(0.5)))
    status, lines = compared(old, new)
    assert status == 0 and lines[-1].startswith("0 entries compared")


def test_single_values_need_more(compared):
    for factor, status in ((0.8, 0), (0.7, 1)):
        assert compared(result(measured([100.0])), result(measured([100 * factor])))[0] == status


def test_a_few_pages_are_noise(compared):
    for extra, status in ((1.0, 0), (3.0, 1)):
        old, new = (result(measured([v] * 5, unit="MiB", better="lower")) for v in (4.0, 4.0 + extra))
        assert compared(old, new)[0] == status


def test_missing_and_new_entries_are_named(compared):
    old, new = result(measured(STEADY, "gone"), measured(STEADY, "lost")), result(measured(STEADY, "born"))
    new["groups"]["speed"]["skipped"] = {"gone": "it is refused"}
    status, lines = compared(old, new)
    assert status == 0
    assert lines[:3] == ["missing: speed: gone (it is refused)", "missing: speed: lost", "new: speed: born"]


@pytest.mark.parametrize(
    ("key", "value"), [("words", "another machine"), ("threads", 2), ("torch", "2.15.0"), ("python", "3.12.0")]
)
def test_another_machine_is_warned_of(compared, key, value):
    same = compared(result(measured(STEADY)), result(measured(STEADY)))[1]
    assert not any(line.startswith("warning") for line in same)
    _, lines = compared(result(measured(STEADY)), result(measured(STEADY), **{key: value}))
    (warning,) = [line for line in lines if line.startswith("warning")]
    assert str(MACHINE[key]) in warning and str(value) in warning


def test_quick_runs_failures_and_other_settings_are_warned_of(compared):
    old, new = result(measured(STEADY)), result(measured(scaled(0.5)))
    new["settings"]["quick"] = True
    new["groups"]["speed"]["error"] = "RuntimeError: no"
    new["groups"]["speed"]["entries"][0]["settings"] = {"problems": 2}
    status, lines = compared(old, new)
    warnings = [line for line in lines if line.startswith("warning")]
    assert status == 0 and len(warnings) == 3
    assert any("--quick" in w for w in warnings) and any("RuntimeError: no" in w for w in warnings)
    assert any("speed: inner: other settings" in w for w in warnings)


DAMAGES = {
    "a field is missing": lambda r: r.pop("machine"),
    "another schema": lambda r: r.update(schema=99),
    "a group is no object": lambda r: r["groups"].update(speed=[]),
    "a median is text": lambda r: r["groups"]["speed"]["entries"][0].update(median="1"),
    "a value is not finite": lambda r: r["groups"]["speed"]["entries"][0].update(values=[float("nan")]),
    "a value is true": lambda r: r["groups"]["speed"]["entries"][0].update(values=[True]),
    "no values": lambda r: r["groups"]["speed"]["entries"][0].update(values=[]),
    "median below min": lambda r: r["groups"]["speed"]["entries"][0].update(median=0.0),
    "better is neither": lambda r: r["groups"]["speed"]["entries"][0].update(better="maybe"),
    "an entry twice": lambda r: r["groups"]["speed"]["entries"].append(r["groups"]["speed"]["entries"][0]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_give_one_line(tmp_path, capsys, damage):
    good = result(measured(STEADY))
    bad = copy.deepcopy(good)
    DAMAGES[damage](bad)
    assert _one_line(tmp_path, capsys, json.dumps(good), json.dumps(bad))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_files_that_are_not_results_give_one_line(tmp_path, capsys, text):
    assert _one_line(tmp_path, capsys, json.dumps(result(measured(STEADY))), text)


def test_a_file_that_is_not_there_gives_one_line(tmp_path, capsys):
    assert _one_line(tmp_path, capsys, json.dumps(result(measured(STEADY))), None)


def _one_line(tmp_path: Path, capsys, old: str, new: str | None) -> bool:
    paths = [tmp_path / "old.json", tmp_path / "new.json"]
    paths[0].write_text(old)
    if new is not None:
        paths[1].write_text(new)
    status = compare.main([*map(str, paths)])
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    return status == 2 and not out and line.startswith(f"error: {paths[1]}: ")
