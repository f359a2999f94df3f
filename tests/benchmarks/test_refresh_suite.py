"""The learned optimizers of one result of a suite beside the baselines of another."""

import copy
import json
from pathlib import Path

import pytest
import refresh_suite

RESULT = Path(__file__).parents[2] / "docs" / "results" / "generalise_scheduled.json"


def test_rows_of_the_same_result_change_no_ratio():
    content = json.loads(RESULT.read_text())
    made = refresh_suite.with_rows_of(copy.deepcopy(content), copy.deepcopy(content))
    key = ("task", "optimizer")
    before = {tuple(row[k] for k in key): row for row in content["rows"]}
    assert {tuple(row[k] for k in key) for row in made["rows"]} == set(before)
    for row in made["rows"]:
        for name, ratio in ((k, v) for k, v in row.items() if k.startswith("ratio_to_best")):
            assert ratio["ratio"] == pytest.approx(before[row["task"], row["optimizer"]][name]["ratio"], rel=1e-9)
    for name, parts in content["summary"].items():
        for reference, summary in parts.items():
            assert made["summary"][name][reference]["iqm"] == pytest.approx(summary["iqm"], rel=1e-9), (name, reference)


def test_learned_rows_are_those_of_the_other_result():
    content = json.loads(RESULT.read_text())
    other = copy.deepcopy(content)
    for row in other["rows"]:
        row["losses"] = [float(x) / 2 for x in row["losses"]]
    made = refresh_suite.with_rows_of(copy.deepcopy(content), other)
    for row, before in zip(made["rows"], content["rows"], strict=True):
        if row["kind"] == "learned":
            ratios = row["ratio_to_best_baseline"]["ratio"], before["ratio_to_best_baseline"]["ratio"]
            assert ratios[0] == pytest.approx(2 * ratios[1], rel=1e-9)
        else:
            assert row == before


def test_learned_rows_that_the_other_result_lacks_stay():
    content = json.loads(RESULT.read_text())
    first, *others = dict.fromkeys(row["optimizer"] for row in content["rows"] if row["kind"] == "learned")
    other = copy.deepcopy(content)
    other["rows"] = [row for row in other["rows"] if row["optimizer"] not in others]
    other["summary"] = {name: parts for name, parts in other["summary"].items() if name not in others}
    made = refresh_suite.with_rows_of(copy.deepcopy(content), other)
    assert others and made["optimizers"] == content["optimizers"] and list(made["summary"]) == list(content["summary"])
    assert [row for row in made["rows"] if row["optimizer"] != first] == [
        row for row in content["rows"] if row["optimizer"] != first
    ]
    assert all(made["summary"][name] == content["summary"][name] for name in others)


def test_baselines_that_the_file_lacks_are_added():
    whole = json.loads(RESULT.read_text())
    content, other = copy.deepcopy(whole), copy.deepcopy(whole)
    added = {"soap+cosine", "muon+cosine"}
    references = {"adamw+cosine", "nesterov+cosine"}
    for made, without in ((content, added), (other, set(whole["optimizers"]) - added - references)):
        made["rows"] = [row for row in made["rows"] if row["optimizer"] not in without]
        made["optimizers"] = [name for name in made["optimizers"] if name not in without]
        made["summary"] = {name: parts for name, parts in made["summary"].items() if name not in without}
        for row in made["rows"]:  # to be computed anew
            row["ratio_to_best_baseline"], row["best_baseline"] = {"ratio": 0.0, "ci95": [0.0, 0.0]}, "none"
    found = refresh_suite.with_rows_of(content, other)
    key = ("task", "optimizer")
    before = {tuple(row[k] for k in key): row for row in whole["rows"]}
    assert len(found["rows"]) == len(before) and set(found["optimizers"]) == set(whole["optimizers"])
    for row in found["rows"]:
        same = before[row["task"], row["optimizer"]]
        assert row["losses"] == same["losses"] and row["best_baseline"] == same["best_baseline"]
        assert row["ratio_to_best_baseline"]["ratio"] == pytest.approx(
            same["ratio_to_best_baseline"]["ratio"], rel=1e-9
        )
    for name, parts in whole["summary"].items():
        made = found["summary"][name]
        assert {k: v["iqm"] for k, v in made.items()} == pytest.approx({k: v["iqm"] for k, v in parts.items()}), name
        assert made["held_out_ratio"] == parts["held_out_ratio"]


def test_a_result_that_lacks_tasks_is_refused():
    content = json.loads(RESULT.read_text())
    last = content["rows"][-1]["task"]
    other = {**content, "rows": [row for row in content["rows"] if row["task"] != last]}
    with pytest.raises(SystemExit, match=f"--rows: has no {last}; finish it first"):
        refresh_suite.with_rows_of(content, other)


def test_results_of_other_problems_are_refused():
    content = json.loads(RESULT.read_text())
    with pytest.raises(SystemExit, match="seed=1: must be 0, as in the file"):
        refresh_suite.with_rows_of(content, {**content, "seed": 1})
