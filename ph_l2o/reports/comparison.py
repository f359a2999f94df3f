"""What a comparison on one task says: verdict, table, where the learned optimizers lose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ph_l2o.palette import Look, looks
from ph_l2o.reports.curves import curves_or_picture, learning_curves
from ph_l2o.reports.parts import Cell, Column, Section, Sentences, Table, interval_cell, log_places, number_cell
from ph_l2o.reports.values import Interval, get, interval, inverse, mapping, number, show, text, with_interval

Row = Mapping[str, Any]
_MEASURES = {"final": "at the end", "last10": "over the last 10 steps", "all": "over all steps"}


def names_of(found: Mapping[str, Any], kind: str) -> list[str]:
    """The optimizers of a kind: `learned`, `baseline` (tuned) or `classical`."""
    return [row["optimizer"] for row in found["rows"] if row.get("kind") == kind]


def ratio_to_best(row: Row) -> tuple[float, Interval]:
    """The best baseline's loss over the row's, and its interval: above 1 the row's is better. nan if there is none."""
    low, high = interval(row, "ratio_to_best_baseline", "ci95")
    return inverse(number(row, "ratio_to_best_baseline", "geometric_mean")), (inverse(high), inverse(low))


def verdict(found: Mapping[str, Any]) -> list[str]:
    """A sentence for each learned optimizer; of baselines alone, which is lowest."""
    best, count = text(found, "best_baseline"), text(found, "num_problems")
    learned = [row for row in found["rows"] if row.get("kind") == "learned"]
    sentences = []
    for row in learned if best else []:
        sentences.append(_against_best(row, best, count))
        lower = [b for b, m in mapping(row, "paired_differences").items() if interval(m, "final", "ci95")[0] > 0]
        if lower:
            end = "end" if len(lower) > 1 else "ends"
            sentences.append(f"In the mean over problems, {_list(lower)} {end} below {row['optimizer']}, beyond noise.")
    if not sentences:
        rows = [r for r in found["rows"] if math.isfinite(number(r, "final", "mean"))]
        if not rows:
            return ["No optimizer has a finite mean loss at the end."]
        low = min(rows, key=lambda r: number(r, "final", "mean"))
        value = with_interval(number(low, "final", "mean"), interval(low, "final", "ci95"))
        sentences = [f"{low['optimizer']} has the lowest mean loss at the end: {value}, of {count} problems."]
    return sentences


def _against_best(row: Row, best: str, count: str) -> str:
    name = row["optimizer"]
    point, (low, high) = ratio_to_best(row)
    if math.isnan(point):  # losses can be negative, so ratios have no meaning
        point, (low, high) = -number(row, "difference_to_best_baseline", "mean"), (0.0, 0.0)
        ends = interval(row, "difference_to_best_baseline", "ci95")
        low, high, equal = -ends[1], -ends[0], 0.0
        measure, mean = f"its loss less that of {name}", "mean"
    else:
        equal, measure, mean = 1.0, f"its loss over that of {name}", "geometric mean"
    how = "ends below" if low > equal else "ends above" if high < equal else "ends, within noise, where"
    tail = " does" if how.endswith("where") else ""
    value = with_interval(point, (low, high))
    return (
        f"{name} {how} the best tuned baseline, {best}{tail}: {measure} is {value}, {mean} of {count} paired problems."
    )


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def sections(folder: Path, found: Mapping[str, Any]) -> list[Section]:
    """All that is shown of a comparison."""
    rows: list[Row] = found["rows"]
    shown = looks([r["optimizer"] for r in rows], names_of(found, "learned"))
    horizon, task = text(found, "horizon"), text(found, "task")
    charts = learning_curves(folder / "curves.csv", shown)
    curves = curves_or_picture(charts, folder, "curves.png", f"Median loss on {task} against inner steps")
    made = [Section(f"Loss after {horizon} steps on {task}", [_table(found, shown)])]
    if curves:
        made.append(Section("Learning curves", curves))
    if lost := where_it_loses(found):
        made.append(Section("Where it loses", [Sentences(lost)]))
    if any(get(row, "paired_differences") for row in rows):
        made.append(Section("Paired differences", [_paired(rows)], folded=True))
    if any(get(row, "tuning") for row in rows):
        made.append(Section("How the baselines were tuned", [_tuning(rows)], folded=True))
    return made


def _table(found: Mapping[str, Any], shown: Mapping[str, Look]) -> Table:
    rows: list[Row] = found["rows"]
    best = text(found, "best_baseline")
    bars = log_places({k: ratio_to_best(row) for k, row in enumerate(rows)})
    means = [number(row, "final", "mean") for row in rows]
    lowest = min((m for m in means if not math.isnan(m)), default=math.nan)
    columns = [
        Column("optimizer", numeric=False),
        Column("mean [95 %]", "Mean of the final loss over problems, and its bootstrap interval"),
        Column("ratio, → better", f"Loss of {best} over this one's: geometric mean over paired problems"),
        Column("median", "Median of the final loss"),
        Column("geo. mean", "Geometric mean of the final loss"),
        Column("IQM", "Interquartile mean of the final loss"),
        Column("last 10", "Mean loss over the last 10 steps"),
        Column("all steps", "Mean loss over all steps"),
        Column("diverged", "Problems on which the loss was not finite at the end"),
        Column("accuracy", "On held-out data"),
        Column("test loss", "On held-out data"),
        Column("lr", "Learning rate, as tuned"),
        Column("schedule", numeric=False),
        Column("ms/step", "Time of a step, with the task's gradients"),
    ]
    lines = []
    for k, row in enumerate(rows):
        point, ends = ratio_to_best(row)
        mean = with_interval(means[k], interval(row, "final", "ci95"))
        lines.append([
            Cell(row["optimizer"], row["optimizer"], shown[row["optimizer"]]),
            Cell(mean, means[k], mark="best" if means[k] == lowest else ""),
            Cell("1" if row["optimizer"] == best else with_interval(point, ends), point, bar=bars.get(k)),
            *(number_cell(number(row, "final", name)) for name in ("median", "geometric_mean", "iqm")),
            *(number_cell(number(row, name)) for name in ("last10_mean", "all_mean")),
            Cell(text(row, "diverged"), number(row, "diverged"), mark="worse" if number(row, "diverged") > 0 else ""),
            *(number_cell(number(row, name)) for name in ("accuracy", "test_loss", "learning_rate")),
            Cell(text(row, "schedule"), text(row, "schedule"), mark="left"),
            number_cell(number(row, "step_seconds"), scale=1e3),
        ])  # fmt: skip
    note = "Baselines are tuned on validation problems. Intervals are bootstrap intervals over problems."
    return Table(f"{text(found, 'num_problems')} test problems, the same for all", columns, lines, note)


def where_it_loses(found: Mapping[str, Any]) -> list[str]:
    """What speaks against each learned optimizer; says so where nothing does."""
    sentences = []
    baselines = [row for row in found["rows"] if row.get("kind") == "baseline"]
    for row in found["rows"]:
        if row.get("kind") == "learned" and baselines:
            mine = _losses_of(row, baselines, number(found, "num_problems"))
            name = row["optimizer"]
            sentences += mine or [f"{name}: no tuned baseline has a lower loss beyond noise, here."]
    return sentences


def _losses_of(row: Row, baselines: Sequence[Row], count: float) -> list[str]:
    name, told = row["optimizer"], []
    for baseline, measures in mapping(row, "paired_differences").items():
        parts = []
        for key, words in _MEASURES.items():
            if interval(measures, key, "ci95")[0] > 0:
                parts.append(
                    f"{words} by {with_interval(number(measures, key, 'mean'), interval(measures, key, 'ci95'))}"
                )
        if parts:
            told.append(f"{baseline} has a lower loss than {name} {', '.join(parts)}.")
    for key, words, sign in (("test_loss", "a lower held-out loss", 1), ("accuracy", "a higher accuracy", -1)):
        better = [b for b in baselines if sign * (number(row, key) - number(b, key)) > 0]
        if better:
            listed = _list([f"{b['optimizer']} ({show(number(b, key))})" for b in better])
            told.append(
                f"{listed} {'have' if len(better) > 1 else 'has'} {words} than {name} ({show(number(row, key))})."
            )
    if number(row, "diverged") > 0:
        told.append(f"{name} diverged on {text(row, 'diverged')} of {count:g} problems.")
    mine = number(row, "step_seconds")
    slower = [mine / number(b, "step_seconds") for b in baselines if number(b, "step_seconds") > 0]
    if slower and min(slower) > 1.1:
        told.append(
            f"A step of {name} takes {show(min(slower))} to {show(max(slower))} times as long as a baseline's here."
        )
    return told


def _paired(rows: Sequence[Row]) -> Table:
    columns = [
        Column("less than 0 is better", numeric=False),
        *(Column(f"{words} [95 %]") for words in _MEASURES.values()),
    ]
    lines = [
        [
            Cell(f"{row['optimizer']} − {baseline}", baseline),
            *(interval_cell(number(m, key, "mean"), interval(m, key, "ci95")) for key in _MEASURES),
        ]
        for row in rows
        for baseline, m in mapping(row, "paired_differences").items()
    ]
    return Table("Differences of losses, problem by problem", columns, lines)


def _tuning(rows: Sequence[Row]) -> Table:
    columns = [
        Column("baseline", numeric=False), Column("chosen", numeric=False), Column("of", numeric=False),
        Column("runs", "Settings that were tried"), Column("grid widened", "Because the best was at its edge", False),
    ]  # fmt: skip
    lines = []
    for row in rows:
        if tuning := get(row, "tuning"):
            grid = mapping(row, "grid")
            tried = "; ".join(f"{k}: {', '.join(map(_plain, v))}" for k, v in grid.items() if isinstance(v, list))
            chosen = ", ".join(f"{k} = {_plain(v)}" for k, v in mapping(row, "hyperparameters").items() if k in grid)
            lines.append([
                Cell(row["optimizer"], row["optimizer"]), Cell(chosen, chosen, mark="left"),
                Cell(tried, tried, mark="long"),
                Cell(str(len(tuning)), len(tuning)) if isinstance(tuning, list) else Cell(""),
                Cell("yes" if row.get("grid_widened") else "no", mark="left"),
            ])  # fmt: skip
    return Table("On validation problems", columns, lines)


def _plain(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
