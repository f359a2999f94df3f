"""Folders of results, written by hand: pages are made of files alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


def estimate(mean: float, low: float, high: float) -> dict[str, Any]:
    return {"mean": mean, "ci95": [low, high]}


def row(name: str, kind: str, mean: float, **more: Any) -> dict[str, Any]:
    final = {"mean": mean, "median": mean, "geometric_mean": mean, "iqm": mean, "ci95": [0.9 * mean, 1.1 * mean]}
    return {
        "optimizer": name, "kind": kind, "final": final, "last10_mean": mean, "all_mean": 2 * mean, "diverged": 0,
        "learning_rate": None if kind == "learned" else 0.1, "step_seconds": 0.002 if kind == "learned" else 0.001,
        **more,
    }  # fmt: skip


def comparison() -> dict[str, Any]:
    """One learned optimizer, which ends below adam, the best baseline; adamw is better over all steps."""
    paired = {
        "adam": {m: estimate(-0.1, -0.2, -0.05) for m in ("final", "last10", "all")},
        "adamw": {
            "final": estimate(-0.2, -0.3, -0.1),
            "last10": estimate(0.0, -0.1, 0.1),
            "all": estimate(0.3, 0.2, 0.4),
        },
    }
    ours = {"ratio_to_best_baseline": {"geometric_mean": 0.8, "ci95": [0.625, 0.9]}, "paired_differences": paired}
    rows = [
        row("ours", "learned", 0.8, **ours, diverged=2),
        row("adam", "baseline", 1.0, ratio_to_best_baseline={"geometric_mean": 1.0, "ci95": [1.0, 1.0]}),
        row("adamw", "baseline", 9.0, test_loss=None),
    ]
    rows[2]["final"] = {"mean": "inf", "median": 9.0, "geometric_mean": None, "iqm": 9.0, "ci95": [9.0, "inf"]}
    return {
        "task": "quadratic", "horizon": 2, "num_problems": 64, "best_baseline": "adam", "rows": rows,
        "git_revision": "abc123-dirty", "versions": {"torch": "2.14"}, "machine": "a fast one",
    }  # fmt: skip


CONFIG = "run_name: quadratic_ours\nmeta:\n  outer_steps: 5\nseed: 1\noverrides:\n- seed=1\n- task=[a, b]\n"
CURVES = "optimizer,step,median,low,high\n" + "".join(
    f"{name},{step},{top - step},{0.5 * (top - step)},inf\n"
    for name, top in (("ours", 3), ("adam", 4))
    for step in (0, 1, 2)
)
METRICS = "outer_step,train/outer_loss,val/score\n1,2.5,\n2,nan,0.5\n3,1.5,0.25\n"

Made = Callable[..., Path]


@pytest.fixture
def results(tmp_path: Path) -> Made:
    """Write a folder; files that are None are left out."""

    def make(name: str = "run", **files: str | dict[str, Any] | None) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        usual = {"comparison_json": comparison(), "config_yaml": CONFIG, "curves_csv": CURVES, "metrics_csv": METRICS}
        for key, content in (usual | files).items():
            if content is not None:
                text = content if isinstance(content, str) else json.dumps(content)
                (folder / ".".join(key.rsplit("_", 1))).write_text(text)
        return folder

    return make


def suite() -> dict[str, Any]:
    """Better on one task of two, by ratios to adam and to the best baseline."""
    rows = []
    for task, ratio in (("easy", 1.5), ("hard", 0.5)):
        ratios = {"ratio": ratio, "ci95": [0.9 * ratio, 1.1 * ratio]}
        rows.append({
            "task": task, "optimizer": "ours", "kind": "learned", "loss": 1 / ratio, "horizon": 100, "parameters": 1234,
            "diverged": 0, "best_baseline": "adam", "ratio_to_adam": ratios, "ratio_to_best_baseline": ratios,
        })  # fmt: skip
        rows.append({"task": task, "optimizer": "adam", "kind": "baseline", "loss": 1.0, "horizon": 100, "diverged": 0})
    part = {"iqm": 1.2, "ci95": [1.1, 1.3], "worst": 0.5, "worst_task": "hard", "better": 1, "num_tasks": 2}
    summary = {"ours": {"ratio_to_adam": part, "ratio_to_best_baseline": {**part, "iqm": 0.9, "ci95": [0.8, 0.95]}}}
    return {"suite": "mine", "complete": True, "tasks": {"easy": {}, "hard": {}}, "summary": summary, "rows": rows}
