"""docs/results.md and the numbers that README and docs take from it."""

import json
import re
import shutil
from pathlib import Path

import _compared
import pytest
import tables

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(f"{tables.START}(.*?){tables.END}", re.DOTALL)


def numbers(text: str) -> set[str]:
    """Numbers as they stand, but .5 for 0.5 and 1000 for 1,000."""
    found = re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?|\.\d+", text)
    return {re.sub(r"^0(?=\.)", "", number.replace(",", "")) for number in found}


def test_the_pages_are_what_the_result_files_say(capsys):
    assert tables.main(["--check"]) == 0, capsys.readouterr().out


def test_readme_has_its_rows():
    (block,) = BLOCK.findall((ROOT / "README.md").read_text())
    assert block.strip() == tables.readme_table(tables.load(ROOT / "docs" / "results"))


def test_numbers_that_are_taken_from_results_are_there():
    known = numbers((ROOT / "docs" / "results.md").read_text())
    blocks = {path: BLOCK.findall(path.read_text()) for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]}
    assert sum(map(len, blocks.values())) >= 2
    for path, texts in blocks.items():
        assert path.read_text().count(tables.START) == path.read_text().count(tables.END) == len(texts)
        for text in texts:
            assert numbers(text) <= known, f"{path.name}: {numbers(text) - known}"


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The pages and result files in another folder."""
    shutil.copytree(ROOT / "docs" / "results", tmp_path / "docs" / "results")
    for name in ("README.md", "docs/results.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    return tmp_path


def test_another_result_is_seen_and_written(copy, capsys):
    path = copy / "docs" / "results" / "generalise.json"
    content = json.loads(path.read_text())
    content["summary"]["port_hamiltonian"]["ratio_to_adam"]["iqm"] = 0.987654
    path.write_text(json.dumps(content))
    assert tables.main(["--check"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{name}: is not what the result files say; run python benchmarks/tables.py"
        for name in ("README.md", "docs/results.md")
    ]
    assert tables.main([]) == 0 and tables.main(["--check"]) == 0
    assert all("0.988 [" in (copy / name).read_text() for name in ("README.md", "docs/results.md"))


def test_a_result_that_is_missing_is_left_out(copy):
    (copy / "docs" / "results" / "ladder.json").unlink()
    text = tables.page(tables.load(copy / "docs" / "results"))
    assert "## Size of the network" not in text and "## Processes" in text


def test_losses_are_named():
    def pair(low: float, high: float) -> dict:
        return {"final": {"mean": (low + high) / 2, "ci95": [low, high]}}

    pairs = {"adam": pair(-3, -1), "muon": pair(-1, 1), "soap": pair(1, 3)}
    rows = [{"optimizer": "ours", "paired_differences": pairs}, {"optimizer": "adam", "paired_differences": None}]
    assert _compared.lost(rows, "final") == "ours to soap +2 [+1, +3], and cannot be told apart from muon +0 [-1, +1]"
    rows[0]["paired_differences"] = {"adam": pair(-3, -1)}
    assert _compared.lost(rows, "final") == "ours to none"
