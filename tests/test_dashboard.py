"""The workspace and the report, made without a server: what is sent names keys that runs have."""

import builtins
import json
import re
import sys

import pytest

from ph_l2o.dashboard.__main__ import main

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style:DeprecationWarning")  # of wandb-workspaces


def strings(node):
    if isinstance(node, dict):
        for value in node.values():
            yield from strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from strings(value)
    elif isinstance(node, str):
        yield node


@pytest.fixture
def made(tmp_path, capsys):
    def make(*arguments: str) -> dict:
        main(["--entity", "team", *arguments, "--dry-run", "--json", str(tmp_path / "sent.json")])
        assert "nothing was sent" in capsys.readouterr().out
        return json.loads((tmp_path / "sent.json").read_text())

    return make


def test_what_is_sent(made):
    sent = made("mine", "--group", "2026-01-02_sweep", "--title", "A sweep", "--parameters", "meta.learning_rate")
    workspace, report = sent["workspace"], sent["report"]
    assert (workspace["entity"], workspace["project"], workspace["displayName"]) == ("team", "mine", "A sweep")
    sections = workspace["spec"]["section"]["panelBankConfig"]["sections"]
    kinds = {panel["viewType"] for section in sections for panel in section["panels"]}
    assert kinds >= {"Run History Line Plot", "Bar Chart", "Scatter Plot", "Parallel Coordinates Plot"}
    grids = [block for block in report["spec"]["blocks"] if block["type"] == "panel-grid"]
    assert len(grids) == len(sections) == 4
    for part in sent.values():
        said = set(strings(part))
        assert {"curves/trained", "val/score", "summary:test/horizon", "config:meta.value.learning_rate"} <= said
        assert "summary:test/trained/ratio_to_best_baseline" in said and "2026-01-02_sweep" in said
        assert {"outer_step", "inner_step", "diagnostics/energy_end"} <= said


def test_other_optimizers_and_sweeps_of_agents(made):
    said = set(strings(made("--optimizer", "lstm", "--sweep", "abc123", "--by", "task._target_")["workspace"]))
    assert {"curves/lstm", "test/lstm/final", "abc123", "task.value._target_"} <= said
    assert not any("trained" in text for text in said)


def test_patterns_match_the_keys_of_evaluations(made):
    patterns = [text for text in strings(made()["workspace"]) if text.startswith("^")]
    assert any(re.match(p, "inner/port_hamiltonian/lr/theta") for p in patterns)
    assert any(re.match(p, "inner/port_hamiltonian/energy") for p in patterns)
    assert any(re.match(p, "curves/adam_cosine") for p in patterns)


def error(*arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert "\n" not in str(stop.value.code)
    return str(stop.value.code)


def test_errors_are_one_line(monkeypatch):
    monkeypatch.delenv("WANDB_ENTITY", raising=False)
    assert error() == "error: --entity: name your team or user in W&B, or set WANDB_ENTITY"
    for name in [m for m in sys.modules if m.partition(".")[0] == "wandb_workspaces"]:
        monkeypatch.delitem(sys.modules, name)
    real = builtins.__import__

    def without(name, *rest):
        if name.partition(".")[0] == "wandb_workspaces":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert error("--entity", "team") == (
        "error: the dashboard needs the package wandb-workspaces: pip install -e '.[dashboards]'"
    )
