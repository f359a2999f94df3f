"""What a comparison on a suite of tasks says."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ph_l2o.palette import Look, looks
from ph_l2o.reports.curves import chart_of, curves_or_picture, learning_curves
from ph_l2o.reports.parts import Bar, Cell, Charts, Column, Line, Section, Sentences, Table, log_places
from ph_l2o.reports.values import Interval, interval, mapping, number, show, text, with_interval

Row = Mapping[str, Any]
_BEST = "ratio_to_best_baseline"
_WORDS = {
    _BEST: "to best baseline",
    "ratio_to_best_untuned": "to best untuned",
    "held_out_ratio": "held-out",
    "speed_up": "speed-up",
}
_ENDS_ABOVE = {
    _BEST: "ends above the best tuned baseline",
    "ratio_to_best_untuned": "ends above the best untuned optimizer",
    "held_out_ratio": "has a higher held-out loss than the reference",
}
_FURTHEST = 10.0  # factor at which a performance profile ends


def words(key: str) -> str:
    """What a ratio is to, or of."""
    return _WORDS.get(key, f"to {key.removeprefix('ratio_to_')}")


def judged(found: Mapping[str, Any]) -> list[str]:
    """The learned optimizers, or all where there are none."""
    kinds = {row["optimizer"]: row.get("kind") for row in found["rows"]}
    return [name for name, kind in kinds.items() if kind == "learned"] or list(kinds)


def verdict(found: Mapping[str, Any]) -> list[str]:
    """For each judged optimizer, its ratios over tasks, and the tasks on which it loses."""
    sentences = []
    if found.get("complete") is False:
        count = len({row["task"] for row in found["rows"]})
        sentences.append(f"The suite is not complete: {count} of {len(mapping(found, 'tasks')) or '?'} tasks so far.")
    learned = any(row.get("kind") == "learned" for row in found["rows"])
    for name in judged(found) if learned else []:
        for key, summary in mapping(found, "summary", name).items():
            if key.startswith("ratio_to_"):
                sentences.append(_sentence(name, key, summary))
            if key == _BEST and (lost := _lost_tasks(found, name, key)):
                tasks = ", ".join(f"{row['task']} ({text(row, 'best_baseline')})" for row in lost)
                sentences.append(f"A tuned baseline is better than {name}, beyond noise, on {tasks}.")
    return sentences or [f"{text(found, 'suite')}: no learned optimizer is among these."]


def _sentence(name: str, key: str, summary: Row) -> str:
    low, high = interval(summary, "ci95")
    how = "ends below" if low > 1 else "ends above" if high < 1 else "ends, within noise, where"
    other = {_BEST: "the best tuned baseline", "ratio_to_best_untuned": "the best untuned optimizer"}
    against = other.get(key, f"tuned {words(key)[3:]}") + (" does" if how.endswith("where") else "")
    ratio = with_interval(number(summary, "iqm"), (low, high))
    better = f"better on {text(summary, 'better')} of {text(summary, 'num_tasks')} tasks"
    worst = f"the worst is {show(number(summary, 'worst'))} on {text(summary, 'worst_task')}"
    return f"{name} {how} {against}: loss ratio {ratio} (interquartile mean over tasks); {better}, {worst}."


def sections(folder: Path, found: Mapping[str, Any]) -> list[Section]:
    """All that is shown of a suite."""
    names = list(dict.fromkeys(row["optimizer"] for row in found["rows"]))
    learned = [row["optimizer"] for row in found["rows"] if row.get("kind") == "learned"]
    shown = looks(names, learned)
    made = []
    if any(mapping(found, "summary").values()):
        made.append(Section("Over tasks", [_summary(found, shown)]))
        made.append(Section("Where it loses", [Sentences(_lost(found))]))
        made.append(Section("Task by task", [_ratios(found, shown)]))
    charts = learning_curves(folder / "suite_curves.csv", shown, by_task=True)
    if curves := curves_or_picture(charts, folder, "suite_curves.png", "Median losses on each task, by inner steps"):
        made.append(Section("Learning curves", curves))
    made.append(Section("Losses", [_losses(found, shown, "loss", "Mean loss over the last tenth of the steps")]))
    if any(math.isfinite(number(row, "held_out_loss")) for row in found["rows"]):
        made[-1] = Section(
            "Losses", [*made[-1].parts, _losses(found, shown, "held_out_loss", "Held-out loss at the end")]
        )
    made.append(Section("Performance profile", [_profile(found, shown)]))
    return made


def _summary(found: Mapping[str, Any], shown: Mapping[str, Look]) -> Table:
    columns = [
        Column("optimizer", numeric=False), Column("loss ratio", numeric=False),
        Column("IQM [95 %], → better", "Interquartile mean over tasks of the other's loss over this one's"),
        Column("better on", "Tasks with a ratio above 1"), Column("worst", "The lowest ratio"),
        Column("on", "Where the lowest ratio is", False),
    ]  # fmt: skip
    parts = [(n, k, s) for n in shown for k, s in mapping(found, "summary", n).items()]
    bars = log_places({(n, k): (number(s, "iqm"), interval(s, "ci95")) for n, k, s in parts})
    rows = [
        [
            Cell(n, n, shown[n]), Cell(words(k), words(k), mark="left"),
            Cell(with_interval(number(s, "iqm"), interval(s, "ci95")), number(s, "iqm"), bar=bars.get((n, k))),
            Cell(f"{text(s, 'better')} of {text(s, 'num_tasks')}", number(s, "better")),
            Cell(show(number(s, "worst")), number(s, "worst")),
            Cell(text(s, "worst_task"), text(s, "worst_task"), mark="left"),
        ]
        for n, k, s in parts
    ]  # fmt: skip
    note = (
        "A ratio above 1 is better for the optimizer: it is the other's loss over its own, or how many times as soon "
    )
    return Table("Ratios over tasks", columns, rows, note + "it reaches the reference's final loss (speed-up).")


def _lost_tasks(found: Mapping[str, Any], name: str, key: str) -> list[Row]:
    """Rows of the tasks on which a ratio is below 1 beyond noise."""
    return [row for row in found["rows"] if row["optimizer"] == name and interval(row, key, "ci95")[1] < 1]


def _lost(found: Mapping[str, Any]) -> list[str]:
    """Tasks on which a judged optimizer ends above the best baseline, or the reference, beyond noise; divergences."""
    told = []
    for name in judged(found):
        rows = [row for row in found["rows"] if row["optimizer"] == name]
        keys = [k for k in mapping(found, "summary", name) if k != "speed_up"]
        before = len(told)
        for key in keys:
            lost = _lost_tasks(found, name, key)
            listed = ", ".join(f"{r['task']} ({show(number(r, key, 'ratio'))})" for r in lost)
            if lost:
                where = f"on {len(lost)} of {len(rows)} tasks, beyond noise, ratio below 1: {listed}."
                told.append(f"{name} {_ENDS_ABOVE.get(key) or 'ends above ' + words(key)[3:]} {where}")
        diverged = [f"{r['task']} ({text(r, 'diverged')} problems)" for r in rows if number(r, "diverged") > 0]
        if diverged:
            told.append(f"{name} diverged on {', '.join(diverged)}.")
        if len(told) == before:
            told.append(f"{name}: on no task beyond noise.")
    return told


def _ratios(found: Mapping[str, Any], shown: Mapping[str, Look]) -> Table:
    names = judged(found)
    rows = [row for row in found["rows"] if row["optimizer"] in names]
    keys = list(dict.fromkeys(k for n in names for k in mapping(found, "summary", n)))
    bars: dict[tuple[int, str], Bar] = {}
    for key in keys:
        values: dict[tuple[int, str], tuple[float, Interval]] = {
            (k, key): (number(row, key, "ratio"), interval(row, key, "ci95")) for k, row in enumerate(rows)
        }
        bars |= log_places(values)
    columns = [Column("task", numeric=False), Column("optimizer", numeric=False)]
    columns += [Column(f"{words(key)}, → better", "With its 95 % interval") for key in keys]
    columns += [Column("best baseline", numeric=False), Column("steps", "Until it has the reference's final loss")]
    lines = [
        [
            Cell(row["task"], row["task"]),
            Cell(row["optimizer"], row["optimizer"], shown[row["optimizer"]], mark="left"),
            *(_ratio(row, key, bars.get((k, key))) for key in keys),
            Cell(text(row, "best_baseline"), text(row, "best_baseline"), mark="left"),
            Cell(show(number(row, "steps_to_reference")), number(row, "steps_to_reference")),
        ]
        for k, row in enumerate(rows)
    ]  # fmt: skip
    note = "The other's loss over the optimizer's, 0 where it diverged; the dashed line is 1."
    return Table("Loss ratios on each task", columns, lines, note)


def _ratio(row: Row, key: str, bar: Bar | None) -> Cell:
    value, ends = number(row, key, "ratio"), interval(row, key, "ci95")
    return Cell(with_interval(value, ends), value, bar=bar, mark="worse" if ends[1] < 1 else "")


def _losses(found: Mapping[str, Any], shown: Mapping[str, Look], key: str, caption: str) -> Table:
    columns = [Column("task", numeric=False), Column("steps"), Column("parameters"), *map(Column, shown)]
    lines = []
    for task in dict.fromkeys(row["task"] for row in found["rows"]):
        by_name = {row["optimizer"]: row for row in found["rows"] if row["task"] == task}
        values = {name: number(row, key) for name, row in by_name.items()}
        low = min((v for v in values.values() if not math.isnan(v)), default=math.nan)
        first = next(iter(by_name.values()))
        cells = [_loss(by_name.get(n, {}), values.get(n, math.nan), low) for n in shown]
        size = number(first, "parameters")
        sizes = Cell(f"{size:,.0f}" if math.isfinite(size) else "", size)
        lines.append(
            [Cell(task, task), Cell(show_count(number(first, "horizon")), number(first, "horizon")), sizes, *cells]
        )
    return Table(caption, columns, lines, "The lowest is bold.")


def _loss(row: Row, value: float, low: float) -> Cell:
    diverged = number(row, "diverged")
    more = f" ({diverged:g} diverged)" if diverged > 0 else ""
    return Cell(show(value) + more, value, mark="best" if value == low else "worse" if more else "")


def show_count(value: float) -> str:
    """A whole number."""
    return f"{value:,.0f}" if math.isfinite(value) else ""


def _profile(found: Mapping[str, Any], shown: Mapping[str, Look]) -> Charts:
    """Of each optimizer, the share of tasks with a loss within a factor of the lowest (Dolan and Moré 2002)."""
    losses: dict[str, dict[str, float]] = {}
    for row in found["rows"]:
        value = math.inf if number(row, "diverged") > 0 else number(row, "loss")
        losses.setdefault(row["task"], {})[row["optimizer"]] = math.inf if math.isnan(value) else value
    factors = [_FURTHEST ** (k / 120) for k in range(121)]

    def share(name: str) -> Callable[[float], float]:
        return lambda factor: sum(_within(by_name, name, factor) for by_name in losses.values()) / len(losses)

    lines = [Line(name, look, list(map(share(name), factors))) for name, look in shown.items()]
    title = f"Share of {len(losses)} tasks with a loss within a factor of the lowest"
    chart = chart_of(title, factors, lines, "factor", "share of tasks")
    note = "A curve further up is better: at factor 1, the share of tasks on which the optimizer is the best of all."
    return Charts([dataclasses.replace(chart, log=False, xlog=True, limits=(0.0, 1.02))], note)


def _within(losses: Mapping[str, float], name: str, factor: float) -> bool:
    floor = 1e-12
    low = max(min(losses.values()), floor)
    return max(losses.get(name, math.inf), floor) <= low * factor * (1 + 1e-9)
