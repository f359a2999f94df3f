"""What pages say, without a browser."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ph_l2o.errors import ReportError
from ph_l2o.reports import page_of, write_report
from ph_l2o.reports.parts import Table
from tests.reports.conftest import HOSTILE, comparison, suite


class Seen(HTMLParser):
    """Tags with their attributes, and the text outside of scripts and styles."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.inside: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if "script" in self.inside:
            self.scripts[-1] += data
        elif "style" not in self.inside:
            self.words += data


def seen(folder: Path) -> Seen:
    return Seen(write_report(folder).read_text())


def sentences(folder: Path) -> str:
    return "\n".join(page_of(folder).verdict)


def tables(folder: Path) -> dict[str, list[list[str]]]:
    parts = (part for section in page_of(folder).sections for part in section.parts)
    return {p.caption: [[c.text for c in row] for row in p.rows] for p in parts if isinstance(p, Table)}


def test_the_verdict_is_a_sentence(results):
    expected = "ours ends below the best tuned baseline, adam: its loss over that of ours is 1.25 [1.11, 1.6], "
    assert sentences(results()) == expected + "geometric mean of 64 paired problems."


@pytest.mark.parametrize(("ratio", "ends", "how"), [
    (1.25, [1.1, 1.4], "ours ends above the best tuned baseline, adam: "),
    (0.9, [0.8, 1.1], "ours ends, within noise, where the best tuned baseline, adam does: "),
])  # fmt: skip
def test_the_verdict_can_be_bad_or_open(results, ratio, ends, how):
    found = comparison()
    found["rows"][0]["ratio_to_best_baseline"] = {"geometric_mean": ratio, "ci95": ends}
    assert sentences(results(comparison_json=found)).startswith(how)


def test_the_verdict_says_where_the_mean_disagrees(results):
    found = comparison()
    found["rows"][0]["paired_differences"]["adam"]["final"] = {"mean": 0.1, "ci95": [0.05, 0.2]}
    assert "In the mean over problems, adam ends below ours, beyond noise." in sentences(results(comparison_json=found))


def test_losses_that_can_be_negative_have_differences(results):
    found = comparison()
    found["rows"][0] |= {
        "ratio_to_best_baseline": None, "difference_to_best_baseline": {"mean": -2.0, "ci95": [-3.0, -1.0]},
    }  # fmt: skip
    text = sentences(results(comparison_json=found))
    assert "ours ends below the best tuned baseline, adam: its loss less that of ours is 2 [1, 3]" in text


def test_a_comparison_without_learned_optimizers_names_the_lowest(results):
    found = comparison()
    found["rows"] = found["rows"][1:]
    assert sentences(results(comparison_json=found)).startswith(
        "adam has the lowest mean loss at the end: 1 [0.9, 1.1]"
    )


def test_where_it_loses(results):
    words = seen(results()).words
    assert "adamw has a lower loss than ours over all steps by 0.3 [0.2, 0.4]." in words
    assert "ours diverged on 2 of 64 problems." in words and "A step of ours takes 2 to 2 times as long" in words
    assert "adam has a lower loss than ours" not in words


def test_the_table_has_intervals_and_what_is_infinite(results):
    (rows,) = (t for caption, t in tables(results()).items() if caption.startswith("64 test problems"))
    assert [row[0] for row in rows] == ["ours", "adam", "adamw"]
    assert rows[0][1] == "0.8 [0.72, 0.88]" and rows[2][1] == "∞ [9, ∞]" and rows[2][4] == "–"
    page = seen(results("again"))
    orders = [
        attributes["data-order"] for tag, attributes in page.tags if tag in ("td", "th") and "data-order" in attributes
    ]
    assert "Infinity" in orders and "nan" not in orders


def test_a_training_without_comparison_tells_of_its_validations(results):
    folder = results(comparison_json=None, curves_csv=None)
    assert "the lowest validation score is 0.25, at outer step 3 (the first was 0.5)" in sentences(folder)
    charts = json.loads(next(s for s in seen(folder).scripts if s.startswith("[[")))
    assert [chart["title"] for chart in charts[0]] == [
        "Meta-loss of outer steps",
        "Validation: score (lower is better)",
    ]
    assert charts[0][0]["lines"][0]["values"] == [2.5, None, 1.5]


def test_settings_and_how_to_reproduce(results):
    folder = results()
    text = write_report(folder, lambda command: {"meta.outer_steps": 5, "seed": 0}).read_text()
    assert "python train.py seed=1 &#39;task=[a, b]&#39;" in text and "git checkout abc123\n" in text
    parts = (p for s in page_of(folder, lambda c: {"meta.outer_steps": 5, "seed": 0}).sections for p in s.parts)
    (changed,) = (p for p in parts if isinstance(p, Table) and p.caption == "Values that differ")
    assert [[c.text for c in row] for row in changed.rows] == [["seed", "1", "0"]]


def test_the_suite(results):
    folder = results(comparison_json=None, curves_csv=None, metrics_csv=None, suite_json=suite())
    text = sentences(folder)
    assert "ours ends below tuned adam: loss ratio 1.2 [1.1, 1.3]" in text and "the worst is 0.5 on hard" in text
    assert "ours ends above the best tuned baseline: loss ratio 0.9 [0.8, 0.95]" in text
    assert "A tuned baseline is better than ours, beyond noise, on hard (adam)." in text
    words = seen(folder).words
    assert "ours ends above adam on 1 of 2 tasks, beyond noise, ratio below 1: hard (0.5)." in words
    losses = tables(folder)["Mean loss over the last tenth of the steps"]
    assert losses == [["easy", "100", "1,234", "0.667", "1"], ["hard", "100", "1,234", "2", "1"]]


def test_an_unfinished_suite_says_so(results):
    found = suite() | {"complete": False, "tasks": {"easy": {}, "hard": {}, "third": {}}}
    folder = results(comparison_json=None, suite_json=found)
    assert sentences(folder).startswith("The suite is not complete: 2 of 3 tasks so far.")


def test_a_sweep(results, tmp_path):
    for k, mean in enumerate((0.8, 0.4)):
        found = comparison()
        found["rows"][0]["final"]["mean"] = mean
        config = CONFIG_OF_JOB.format(seed=k)
        results(f"sweep/{k}_job", comparison_json=found, config_yaml=config)
    write_report(tmp_path / "sweep" / "0_job")
    (tmp_path / "sweep" / "summary.csv").write_text(
        'job,status,seconds,error,mean\n0_job,ok,1.0,,0.8\n1_job,ok,2.0,,0.4\n2_job,error,,"seed=-1: is\nwrong",\n'
    )
    folder = tmp_path / "sweep"
    assert sentences(folder).splitlines() == [
        "3 jobs: 2 ok, 1 error.",
        "quadratic: ours of job 1_job is lowest, 0.4; the best tuned baseline's is 1.25 [1.11, 1.6] times as high.",
    ]
    page = seen(folder)
    assert [a["href"] for tag, a in page.tags if tag == "a"] == ["0_job/report.html"]
    assert "2_job: error: seed=-1: is\nwrong" in page.words
    (rows,) = tables(folder).values()
    assert [row[2] for row in rows] == ["0", "1", ""]  # the seed, which is what differs


CONFIG_OF_JOB = "run_name: x\nmeta: {{}}\noverrides: [seed={seed}, task=quadratic]\n"


def test_a_job_of_a_sweep_is_not_looked_for_elsewhere(results, tmp_path):
    results("secret")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "summary.csv").write_text("job,status\n../secret,ok\n")
    assert sentences(tmp_path / "sweep") == "1 job: 1 ok."


def hostile(results) -> Path:
    """Every text of every file is an attack."""
    found = json.loads(
        json.dumps(comparison()).replace('"ours"', json.dumps(HOSTILE)).replace('"quadratic"', json.dumps(HOSTILE))
    )
    found |= {"machine": HOSTILE, "git_revision": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    quoted = json.dumps(HOSTILE)
    config = f"meta: {{{quoted}: {quoted}}}\noverrides: [{quoted}]\n"
    name = '"' + HOSTILE.replace('"', '""') + '"'
    curves = f"optimizer,step,median,low,high\n{name},0,2,1,3\n{name},1,1,1,1\nadam,0,2,1,3\n"
    diagnostics = f"step,loss,{name.replace('</', '<_')}\n0,1,2\n1,1,2\n"
    status = {"status": HOSTILE, "error": HOSTILE}
    return results("hostile", comparison_json=found, config_yaml=config, curves_csv=curves, status_json=status,
                   diagnostics_evil_csv=diagnostics)  # fmt: skip


def test_nothing_of_a_file_is_executed(results):
    page = seen(hostile(results))
    assert "img" not in [tag for tag, _ in page.tags]
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
    scripts = [attributes.get("type") for tag, attributes in page.tags if tag == "script"]
    assert scripts == ["application/json", None, None]
    assert "</script>" in page.words  # it is there, as text


def test_the_policy_allows_the_page_s_own_scripts_alone(results):
    page = seen(hostile(results))
    (policy,) = (a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy is not None and policy.startswith("default-src 'none'")
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    assert allowed == {base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in page.scripts[1:]}


def test_it_is_self_contained_and_small(results):
    folder = results()
    text = write_report(folder).read_text()
    for tag, attributes in Seen(text).tags:
        assert not (attributes.get("src") or "data:").partition("data:")[0], tag
        assert tag not in ("iframe", "object", "embed") and (tag != "link" or attributes["href"] == "data:,")
    assert "@import" not in text and "url(" not in text and len(text) < 200_000
    assert sorted(p.name for p in folder.iterdir() if p.suffix == ".html") == ["report.html"]


def test_it_can_be_used_with_a_keyboard_and_a_screen_reader(results):
    page = seen(results())
    plots = [a for tag, a in page.tags if a.get("class") == "plot"]
    assert plots and all(a["tabindex"] == "0" and "At the end: " in (a["aria-label"] or "") for a in plots)
    assert all(a.get("type") == "button" for tag, a in page.tags if tag == "button")
    assert [a for tag, a in page.tags if a.get("scope") == "row"] and ("html", {"lang": "en"}) in page.tags


@pytest.mark.parametrize(("files", "name", "why"), [
    ({"comparison_json": '{"rows": ['}, "comparison.json", "is damaged"),
    ({"comparison_json": "[" * 100_000}, "comparison.json", "is damaged"),
    ({"comparison_json": {"rows": []}}, "comparison.json", "it has no rows"),
    ({"comparison_json": {"rows": [{"optimizer": 3}]}}, "comparison.json", "a row has no optimizer"),
    ({"suite_json": {"rows": [{"optimizer": "a"}]}}, "suite.json", "a row has no task"),
    ({"metrics_csv": "a,b\n1,2\n"}, "metrics.csv", "it has no column outer_step"),
    ({"curves_csv": "optimizer,step,median,low,high\na,1\nb,1,1,1,1\n"}, "curves.csv", "fewer values"),
    ({"config_yaml": "a: [1"}, "config.yaml", "is damaged"),
    ({"config_yaml": "- 1"}, "config.yaml", "it holds no mapping"),
    ({"config_yaml": "!!python/object/apply:os.system [true]"}, "config.yaml", "is damaged"),
])  # fmt: skip
def test_damage_is_named_in_one_line(results, files, name, why):
    folder = results(**files)
    with pytest.raises(ReportError) as error:
        write_report(folder)
    text = str(error.value)
    assert text.startswith(f"{folder / name}: ") and why in text and "\n" not in text
    assert not (folder / "report.html").exists()


def test_what_is_absent_is_left_out(results):
    bare = {"rows": [{"optimizer": "a"}, {"optimizer": "b", "final": None, "tuning": 3, "grid": "x"}]}
    page = page_of(results(comparison_json=bare, curves_csv=None, metrics_csv=None, config_yaml=None))
    assert page.verdict == ["No optimizer has a finite mean loss at the end."]
    assert write_report(results("half", metrics_csv="outer_step,val/score\n1,2\n2"))  # killed in the middle of a row


def test_a_folder_without_results(tmp_path):
    with pytest.raises(ReportError, match="no results in here; give a folder with"):
        write_report(tmp_path)
    with pytest.raises(ReportError, match="no such folder"):
        write_report(tmp_path / "nowhere")
