"""What every result file says of how it was made."""

import json
import subprocess

import _measure
import torch


def test_a_file_says_how_it_was_made(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/benchmarks/ladder.py", "--sizes", "1e3"])
    path = tmp_path / "deep" / "found.json"
    _measure.write_json(path, {"rows": [float("inf")]})
    content = json.loads(path.read_text())
    assert content["command"] == "python benchmarks/ladder.py --sizes 1e3"
    assert content["machine"]["words"] and content["machine"]["threads"] == 1
    assert content["versions"]["torch"] == torch.__version__
    assert content["git_revision"] and content["rows"] == ["inf"]


def test_commands_have_no_folder_of_this_machine():
    call = "/home/me/benchmarks/results.py --data /home/me/data --cache=/tmp/x --mnist /home/me/best.ckpt --horizon 100"
    assert _measure.command(call.split()) == "python benchmarks/results.py --mnist best.ckpt --horizon 100"


def test_a_file_that_is_completed_keeps_its_earlier_revision(monkeypatch):
    monkeypatch.setattr(_measure, "revision", lambda: "new")
    assert _measure.made_with(1)["git_revision"] == "new"
    assert _measure.made_with(1, {})["git_revision"] == "unknown, new"
    assert _measure.made_with(1, {"git_revision": "old"})["git_revision"] == "old, new"
    assert _measure.made_with(1, {"git_revision": "old, new"})["git_revision"] == "old, new"


def test_results_that_were_written_before_do_not_make_a_revision_dirty(tmp_path, monkeypatch):
    def git(*arguments: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "docs").mkdir()
    for name in ("code.py", "docs/found.json"):
        (tmp_path / name).write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    monkeypatch.chdir(tmp_path)
    clean = _measure.revision()
    (tmp_path / "docs" / "found.json").write_text("2")
    assert _measure.revision() == clean and len(clean) == 40
    (tmp_path / "code.py").write_text("2")
    assert _measure.revision() == f"{clean}-dirty"
