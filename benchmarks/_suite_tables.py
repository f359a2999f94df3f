"""The suite of tasks, from its result file: tables, and where the learned optimizers lose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import _measure
from _made import Content, Files, made

BEST = "best_baseline"
FORMS = ("port_hamiltonian_kronecker", "port_hamiltonian")
NAMES = {"adam": "Adam", BEST: "best baseline", "best_untuned": "best untuned"}


def section(files: Files, key: str = "generalise") -> list[str]:
    """Ratios on each task, over tasks, and where they are below 1; of the result file `key`."""
    if key not in files:
        return []
    content = files[key]
    optimizers = ", ".join(content["optimizers"])
    reference = f" reference={content['reference']}" if content.get("reference", "adam") != "adam" else ""
    tuned = f"({len(baselines(content))}: {', '.join(baselines(content))}) is tuned for each task"
    constant = "with a learning rate that is constant during a run"
    rates = "some under a schedule, as their names say" if any("+" in name for name in baselines(content)) else constant
    images = ["![Median loss against inner steps on the tasks, beside tuned baselines](images/suite.png)"]
    return [
        f"{len(content['tasks'])} tasks that no optimizer here was trained on, see [comparison.md](comparison.md); "
        f"{content['num_problems']} test problems of each. The loss is the mean of the last tenth of the steps. Each "
        f"baseline {tuned}, at the same number of steps, on {content['tuning_problems']} validation problems, {rates}; "
        "the learned optimizers are not "
        "tuned. A ratio is the loss of the reference over that of the optimizer: above 1 the optimizer is better. In "
        "brackets: 95 % intervals over problems.",
        made([content], f"python evaluate.py suite={content['suite']} 'optimizers=[{optimizers}]'{reference}"),
        *(images if key == "generalise" else []),
        on_each_task(content),
        over_tasks(content),
        *held_out_and_speed(content),
        lost(content),
    ]


def held_out_and_speed(content: Content) -> list[str]:
    """A row for each optimizer: held-out losses, steps to the reference's loss, time of a step."""
    summary = {name: parts for name, parts in content["summary"].items() if "speed_up" in parts}
    if not summary:
        return []
    by_task = rows_by_task(content).values()
    lines = []
    for name, parts in summary.items():
        cells = [f"**{name}**" if name in learned(content) else name]
        for part in (parts.get("held_out_ratio"), parts["speed_up"]):
            cells += [_interval(part, "iqm"), f"{part['worst']:.3g} ({part['worst_task']})"] if part else ["", ""]
        cells.append(f"{1e3 * sum(rows[name]['step_seconds'] for rows in by_task) / len(by_task):.2g}")
        lines.append(cells)
    header = ["over tasks", "held-out loss, interquartile mean", "worst", "speed-up in steps, interquartile mean"]
    return [_measure.table([*header, "worst", "ms for a step of a problem, mean"], lines)]


def learned(content: Content) -> list[str]:
    """Names of the learned optimizers."""
    return list(dict.fromkeys(row["optimizer"] for row in content["rows"] if row["kind"] == "learned"))


def baselines(content: Content) -> list[str]:
    """Names of the tuned baselines."""
    return list(dict.fromkeys(row["optimizer"] for row in content["rows"] if row["kind"] == "baseline"))


def references(content: Content) -> list[str]:
    """What ratios of losses are to: a baseline's name, the best of the baselines, that of the untuned ones."""
    keys = next(iter(content["summary"].values()))
    return [key.removeprefix("ratio_to_") for key in keys if key.startswith("ratio_to_")]


def rows_by_task(content: Content) -> dict[str, dict[str, Any]]:
    """Rows by task and optimizer."""
    found: dict[str, dict[str, Any]] = {}
    for row in content["rows"]:
        found.setdefault(row["task"], {})[row["optimizer"]] = row
    return found


def on_each_task(content: Content) -> str:
    """A row for each task."""
    first, *_ = keys = references(content)
    pairs = [(name, key) for key in keys for name in learned(content)]
    header = ["task", "steps", "weights", f"{NAMES.get(first, first)}'s loss"]
    header += [f"{NAMES.get(key, key)}'s / {name}" for name, key in pairs] + ["best baseline"]
    lines = []
    for task, rows in rows_by_task(content).items():
        row = rows[first]
        cells = [f"`{task}`", f"{row['horizon']:,}", f"{row['parameters']:,}", f"{float(row['loss']):.3g}"]
        cells += [_interval(rows[name][f"ratio_to_{key}"]) for name, key in pairs]
        lines.append([*cells, row["best_baseline"]])
    return _measure.table(header, lines)


def over_tasks(content: Content) -> str:
    """A row for each optimizer."""
    header = ["over tasks"]
    for key in references(content):
        header += [f"to {NAMES.get(key, key)}, interquartile mean", "worst", "better on"]
    by_task = rows_by_task(content).values()
    lines = []
    for name, parts in content["summary"].items():
        cells = [f"**{name}**" if name in learned(content) else name]
        for part in (parts[f"ratio_to_{key}"] for key in references(content)):
            worst = f"{part['worst']:.3g} ({part['worst_task']})"
            cells += [_interval(part, "iqm"), worst, f"{part['better']} of {part['num_tasks']}"]
        runs = [rows[name] for rows in by_task]
        diverged = f"{sum(row['diverged'] for row in runs)} of {sum(len(row['losses']) for row in runs)}"
        lines.append([*cells, diverged])
    return _measure.table([*header, "diverged"], lines)


def lost(content: Content) -> str:
    """Tasks with a ratio below 1, of each learned optimizer."""
    lines = ["**Where they lose** (ratios below 1; in bold where the whole interval is):\n"]
    for name in learned(content):
        for key in references(content):
            ratios = {task: rows[name][f"ratio_to_{key}"] for task, rows in rows_by_task(content).items()}
            worse = {task: ratio for task, ratio in ratios.items() if ratio["ratio"] < 1}
            names = [_task(task, worse[task]) for task in sorted(worse, key=lambda task: worse[task]["ratio"])]
            lines.append(f"- {name} to {NAMES.get(key, key)}: {', '.join(names) or 'nowhere'}.")
    return "\n".join(lines)


def readme_rows(content: Content, mode: str = "", kind: str = "unseen tasks") -> list[list[str]]:
    """Ratios to both references, and where they are worst; Kronecker-factored form and plain form in a mode."""
    names = [name + mode for name in FORMS]
    forms = [content["summary"][name] for name in names]
    count = len(baselines(content))
    first, *_ = references(content)
    texts = {first: f"tuned {NAMES.get(first, first)}'s loss", BEST: f"loss of the best of {count} tuned baselines"}
    rows = []
    for key, text in texts.items():
        parts = [form[f"ratio_to_{key}"] for form in forms]
        cells = [f"{_interval(part, 'iqm')}, better on {part['better']}" for part in parts]
        rows.append([f"{len(content['tasks'])} {kind}: {text} / ours, interquartile mean [95 %]", *cells])
    worst = [form[f"ratio_to_{first}"] for form in forms]
    cells = [f"{part['worst']:.3g} on `{part['worst_task']}`" for part in worst]
    rows.append([f"the worst of these tasks: {texts[first]} / ours", *cells])
    by_task = rows_by_task(content).values()
    counts = [sum(rows[name][f"ratio_to_{BEST}"]["ci95"][1] < 1 for rows in by_task) for name in names]
    rows.append(["of these tasks, lost to the best baseline, beyond noise", *map(str, counts)])
    return rows


def _interval(ratio: Mapping[str, Any], key: str = "ratio") -> str:
    low, high = ratio["ci95"]
    return f"{ratio[key]:.3g} [{low:.3g}, {high:.3g}]"


def _task(task: str, ratio: Mapping[str, Any]) -> str:
    text = f"`{task}` {_interval(ratio)}"
    return f"**{text}**" if ratio["ci95"][1] < 1 else text
