"""docs/study.md, README's rows and the figures are what the result files say."""

import copy
import json
import re
from pathlib import Path

import pytest

from ph_l2o.claims.figures import claim_figure
from ph_l2o.claims.page import END, START, load_results, page, summary_table, with_rows, write_page
from ph_l2o.errors import ReportError

ROOT = Path(__file__).parents[2]
RESULTS = load_results(ROOT / "docs" / "results" / "study")


def test_the_page_is_what_the_committed_result_files_say():
    assert (ROOT / "docs" / "study.md").read_text() == page(RESULTS), "run python evaluate.py experiment=study"
    for name, result in RESULTS.items():
        assert not result["figure"] or (ROOT / "docs" / "images" / f"study_{name}.png").is_file()


def test_readme_has_the_rows():
    text = (ROOT / "README.md").read_text()
    (block,) = re.findall(f"{START}(.*?){END}", text, re.DOTALL)
    assert block.strip() == (summary_table(RESULTS, "docs/study.md") if RESULTS else "")


def estimate(value, reach=0.1):
    return {"value": value, "ci95": [value - reach, value + reach]}


def row(label, value, **more):
    curve = {"steps": [0, 50, 100], "median": [9, 3, value], "low": [8, 2, value / 2], "high": [11, 4, value * 2]}
    return {
        "label": label, "recipe": "fair", "published": None, "again": None, "seeds": 1, "mean": estimate(value),
        "median": estimate(value / 2), "geometric_mean": value, "iqm": value, "spread_of_means": 0.07, "diverged": 0,
        "measures": {"final": estimate(value), "accuracy": estimate(0.9)}, "curves": {"loss": curve},
        "difference": estimate(value - 1), "ratio": estimate(value), **more,
    }  # fmt: skip


NEVER = {"value": "inf", "ci95": ["inf", "inf"]}


def result(name="quadratic", value=0.5, summary="(b) better", **more):
    rows = {
        "ours": row("Ours", value, trainings=["ours"], set={"output_scale": 1.0}, published=0.23),
        "adam": row("Adam", 1.0, recipe="study", baseline="adam@0.1", lr=0.1, schedule="cosine", tuning_runs=640),
        "lost": row("Lost", 5.0, mean=NEVER, ratio=NEVER),
    }  # fmt: skip
    measurement = {
        "kind": "comparison", "statistic": "mean", "title": "The table", "task": ["task=quadratic"], "horizon": 100,
        "num_problems": 1000, "measure": "final", "reference": "adam", "options": {}, "rows": rows,
    }  # fmt: skip
    contrast = {
        "says": "It is better", "measurement": "table", "row": "ours", "side": "below", "recipe": "fair",
        "measure": "final", "headline": True, "against": "adam",
        "estimates": [{"of": "mean", **estimate(value - 1), "threshold": 0.0}],
    }  # fmt: skip
    panel = {
        "measurement": "table",
        "rows": [],
        "strong": ["ours"],
        "title": "Panel",
        "of": None,
        "across": {},
        "axis": "",
    }
    scaling = {**panel, "draw": "scaling", "across": {"table": 10, "other": 100}, "axis": "1/γ"}
    return {
        "claim": name, "title": f"Claim {name}", "claimed": "It is so.", "summary": summary, "notes": "Notes.",
        "command": f"python evaluate.py experiment=study_{name}", "seed": 0, "git_revision": "0123456789abc",
        "versions": {"torch": "2"}, "machine": "a machine", "seconds": 3.0, "weights": {},
        "trainings": {"ours": ["a=b"]},
        "measurements": {"table": measurement, "other": copy.deepcopy(measurement)}, "contrasts": [contrast],
        "figure": {"says": "It shows.", "panels": [{**panel, "draw": d} for d in ("curves", "intervals")] + [scaling]},
        **more,
    }  # fmt: skip


def test_a_page():
    text = page({"quadratic": result(), "mnist": result("mnist", 1.5)})
    assert "**Verdict: reproduced.** Sentences that hold: at its best, 1 of 1." in text
    assert "**Verdict: not reproduced.** Sentences that hold: at its best, 0 of 1." in text
    assert "- It is better: **holds** (difference to Adam (by the study's recipes) −0.5 [−0.6, −0.4])" in text
    assert "| Ours | at its best | output_scale=1.0 | 0.5 [0.4, 0.6] | 0.25 | 0.5 | 0.5 | −0.5 [−0.6, −0.4] |" in text
    assert "| Adam | by the study's recipes | 0.1, cosine | 1 [0.9, 1.1] |" in text
    assert "| Lost | at its best | – | ∞ [∞, ∞] |" in text and "0 of 1,000" in text
    assert "A mean over 100 problems, as the published ones are, has a standard deviation of 0.07." in text
    assert "![Claim mnist](images/study_mnist.png)" in text and "at 012345678." in text
    assert "Baselines were tuned by 1,280 runs" in " ".join(text.split())
    headings = {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in re.findall(r"^#+ (.*)", text, re.M)}
    assert set(re.findall(r"\(#([\w-]+)\)", text)) <= headings


def test_figures_of_others_are_told_as_theirs():
    made = result()
    made["measurements"]["table"]["published"] = {"SHAPE": 0.323, "its best baseline": 1.31}
    text = " ".join(page({"quadratic": made}).split())
    assert "Published by others, in a protocol of their own: 0.323 (SHAPE), 1.31 (its best baseline)." in text
    assert text.count("Published by others") == 1


def test_what_is_said_of_our_optimizer_stands_beside_the_verdict():
    made = result()
    made["contrasts"].append({**made["contrasts"][0], "says": "Ours is better", "side": "above", "ours": True})
    text = page({"quadratic": made})
    assert "**Verdict: reproduced.** Sentences that hold: at its best, 1 of 1." in text
    assert text.index("- It is better") < text.index("does not have:\n\n- Ours is better: **does not hold**")
    (row,) = [line for line in summary_table({"quadratic": made}).splitlines() if line.startswith("| (b)")]
    assert "**reproduced**" in row and row.index("It is better: holds") < row.index("Ours is better: does not hold")


def test_trainings_that_differ_in_their_seeds_are_told_once():
    made = result()
    made["trainings"] = {f"whole_seed{k}": ["optimizer=sgd", f"seed={k}"] for k in (0, 3)} | {"other": ["seed=1"]}
    text = " ".join(page({"quadratic": made}).split())
    assert "Trainings: `whole` (optimizer=sgd seed=0,3), `other` (seed=1)." in text


def test_bars_stand_apart():
    made = result()
    made["contrasts"].insert(0, {**made["contrasts"][0], "says": "No straw man", "bar": True, "recipe": "study"})
    text = page({"quadratic": made})
    assert "Sentences that hold: at its best, 1 of 1." in text  # not 1 of 1 by the study's recipes
    assert text.index("- It is better") < text.index("Bars:\n\n- No straw man: **holds**")
    assert "No straw man" not in summary_table({"quadratic": made})


def test_rows_of_the_readme():
    results = {"quadratic": result(), "mnist": result("mnist", 1.5), "saddles": result("saddles", 1.0, "(a) escapes")}
    text = with_rows(f"before\n{START}\nformer\n{END}\nafter", results)
    lines = text.splitlines()
    assert lines[0] == "before" and lines[-1] == "after" and "former" not in text
    (better,) = [line for line in lines if line.startswith("| (b)")]
    assert (
        better.count("<br>") == 3
        and better.endswith(" | –<br>– |")
        and "[quadratic](docs/study.md#claim-quadratic): **reproduced**" in better
    )
    assert "[mnist](docs/study.md#claim-mnist): **not reproduced**" in better
    assert with_rows("no place", results) == "no place"


def test_what_is_written_is_read_back(tmp_path):
    folder = tmp_path / "docs" / "results" / "study"
    folder.mkdir(parents=True)
    for name in ("structure", "quadratic", "mine"):
        (folder / f"{name}.json").write_text(json.dumps(result(name)))
    results = load_results(folder)
    assert list(results) == ["quadratic", "structure", "mine"]  # in the order of the page
    assert write_page(results, tmp_path / "docs").read_text() == page(results)
    (folder / "mine.json").write_text("{}")
    with pytest.raises(ReportError, match=r"mine.json: is damaged \('measurements'\); put a good copy in its place"):
        load_results(folder)


def test_a_figure_names_every_curve():
    figure = claim_figure(result())
    curves, intervals, scaling = figure.axes
    labels = {text.get_text() for text in curves.texts}
    assert labels == {"Ours", "Adam (study)", "Lost"}
    assert [tick.get_text() for tick in intervals.get_yticklabels()] == [
        "Lost",
        "Adam (study)",
        "Ours",
    ]  # the best on top
    assert "∞ →" in {text.get_text() for text in intervals.texts}
    assert scaling.get_xscale() == "log" and scaling.get_xlabel() == "1/γ"
    assert len(curves.collections) == 1  # a band of what is emphasized


def test_an_optimizer_looks_the_same_in_all_panels_of_a_figure():
    drawn = result()
    drawn["figure"]["panels"][0]["rows"] = ["lost", "adam"]  # another order than in the others, and fewer
    curves, intervals, scaling = claim_figure(drawn).axes
    adam = {text.get_text(): text.get_color() for text in curves.texts}["Adam (study)"]
    assert adam == {text.get_text(): text.get_color() for text in scaling.texts}["Adam (study)"]
    assert adam in {text.get_color() for text in intervals.texts}
    assert curves.lines[1].get_color() == scaling.lines[1].get_color() != scaling.lines[2].get_color()


def test_what_the_study_does_not_claim_is_not_called_reproduced():
    table = summary_table({"mine": result("mine", value=0.5, summary="beyond the study")})
    assert "**holds**" in table and "reproduced" not in table
    table = summary_table({"mine": result("mine", value=1.5, summary="beyond the study")})
    assert "**does not hold**" in table and "reproduced" not in table


def test_a_verdict_under_conditions_shows_one_that_holds():
    mixed = result(value=1.5)
    held = copy.deepcopy(result(value=0.5)["contrasts"][0]) | {"says": "It is better elsewhere", "headline": False}
    mixed["contrasts"].append(held)
    (row,) = summary_table({"quadratic": mixed}).splitlines()[2:]
    assert "only under conditions" in row
    assert row.index("It is better: does not hold") < row.index("; It is better elsewhere: holds")


def test_the_page_tells_which_training_goes_on_with_anothers_weights_and_from_what_revision_it_is():
    made = result(trainings={"first": ["optimizer=sgd"], "second": ["optimizer=adam"]}, after={"second": "first"})
    made["git_revision"] = "0123456789abcdef-dirty"
    text = page({"quadratic": made}).replace("\n", " ")
    assert "`first` (optimizer=sgd), `second` (optimizer=adam) after `first`." in text and "at 012345678-dirty" in text
