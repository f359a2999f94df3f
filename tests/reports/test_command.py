"""`python -m ph_l2o.report FOLDER`, and the pages that the other commands write."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from ph_l2o import report
from ph_l2o.commands.reporting import defaults
from tests.reports.conftest import Made, comparison, row


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Type the command in this process: exit status or message, and what was printed."""

    def run(*words: str | Path) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["report", *map(str, words)])
        code: object = 0
        try:
            report.main()
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr().out

    return run


def test_it_makes_pages_of_results_that_are_there(results: Made, tmp_path: Path) -> None:
    folders = [results("one"), results("two")]
    command = [sys.executable, "-m", "ph_l2o.report", *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(folder / "report.html") for folder in folders]
    text = (folders[0] / "report.html").read_text()
    assert "ours ends below the best tuned baseline, adam" in text
    # seed and outer_steps are not those of conf/; a default that only a run has is no difference.
    assert '<th scope=row data-order="meta.outer_steps">' in text and '<th scope=row data-order="seed">' in text


def test_a_sweep_that_was_killed_is_shown_as_it_is(typed, tmp_path: Path, results: Made) -> None:
    """Without a table yet; and the best baseline of a job is none of the other learned optimizers."""
    found = comparison()
    found["rows"].insert(1, row("other", "learned", 0.1))
    done = results("sweep/0_done", comparison_json=found)
    (done / "status.json").write_text('{"status": "ok", "seconds": 2.0}')
    killed = results("sweep/1_killed", comparison_json=None)
    (killed / "status.json").write_text('{"status": "running"}')
    (tmp_path / "sweep" / "sweep.json").write_text("{}")
    assert typed(tmp_path / "sweep") == (0, f"{tmp_path / 'sweep' / 'report.html'}\n")
    with (tmp_path / "sweep" / "summary.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["best_baseline"], first["its_mean"], first["ratio"]) == ("adam", "1.0", "1.25")
    assert (second["status"], second["error"]) == ("killed", "its process ended without a word")
    assert "2 jobs: 1 ok, 1 killed." in (tmp_path / "sweep" / "report.html").read_text()
    typed(killed)
    assert "running, or killed" in (killed / "report.html").read_text()


def test_a_wrong_folder_is_one_line(typed, tmp_path: Path, results: Made) -> None:
    code, out = typed(tmp_path / "nowhere")
    assert (
        code == f"error: {tmp_path / 'nowhere'}: no such folder; give that of a run, an evaluation or a sweep"
        and not out
    )
    damaged = results(comparison_json="{")
    code, _ = typed(damaged)
    assert str(code).startswith(f"error: {damaged / 'comparison.json'}: is damaged (") and "\n" not in str(code)


def test_a_page_that_cannot_be_written_is_one_line(typed, results: Made) -> None:
    folder = results()
    (folder / "report.html").mkdir()
    code, _ = typed(folder)
    assert str(code).startswith("error: ") and str(folder / "report.html") in str(code) and "\n" not in str(code)


def test_defaults_are_those_of_the_commands() -> None:
    report.register()
    found = defaults("train")
    assert found["meta.outer_steps"] > 0 and found["optimizer._target_"] == "ph_l2o.optimizers.PortHamiltonian"
    assert "${" not in str([v for k, v in found.items() if not k.startswith(("paths", "logger", "run_name"))])
