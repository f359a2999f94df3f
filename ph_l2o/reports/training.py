"""What a meta-training left: its metrics over outer steps; and what an optimizer does over an episode."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ph_l2o.palette import Look, looks
from ph_l2o.reports.curves import chart_of, pictures
from ph_l2o.reports.files import Rows, read_csv
from ph_l2o.reports.parts import Chart, Charts, Line, Section
from ph_l2o.reports.values import number, show

_POINTS = 400  # of a curve
_SHARE = 50  # of the steps, over which running means go
_NEUTRAL = Look("#0072B2", "#4AA8E0", (), False)
_STRONG = Look("#D55E00", "#F28A3C", (), True)
_STEP = "outer_step"


def training_sections(folder: Path) -> list[Section]:
    """Charts of `metrics.csv`; none if there is no such file."""
    rows = read_csv(folder / "metrics.csv", _STEP)
    if not rows:
        return []
    losses = [_chart("Meta-loss of outer steps", rows, ["train/outer_loss"], "meta-loss")]
    finals = [k for k in rows[0] if k.startswith("val/") and k.endswith("/final_loss")]
    validation = finals if len(finals) == 1 else ["val/score"]
    words = "loss at the end" if len(finals) == 1 else "score (lower is better)"
    losses.append(_chart(f"Validation: {words}", rows, validation, words))
    rates = [_chart("Norm of the meta-gradient, before clipping", rows, ["train/gradient_norm"], "norm")]
    rates.append(_chart("Speed", rows, ["train/task_steps_per_s"], "task-steps/s"))
    shown = [chart for chart in losses + rates if chart is not None]
    width = _width(len(rows))
    note = f"Training curves are running means over {width} outer steps." if width > 1 else ""
    return [Section(f"Meta-training, {rows[-1][_STEP]} outer steps", [Charts(shown, note)])] if shown else []


def training_verdict(folder: Path) -> list[str]:
    """What the validations of a meta-training found."""
    rows = read_csv(folder / "metrics.csv", _STEP)
    found = [(number(row, "val/score"), row[_STEP]) for row in rows if math.isfinite(number(row, "val/score"))]
    if not found:
        return []
    score, step = min(found)
    sentence = (
        f"Meta-training of {rows[-1][_STEP]} outer steps: the lowest validation score is {show(score)}, at outer step"
    )
    return [f"{sentence} {step} (the first was {show(found[0][0])}). It was not compared with baselines."]


def _width(count: int) -> int:
    return max(1, count // _SHARE)


def _chart(title: str, rows: Rows, names: Sequence[str], ylabel: str) -> Chart | None:
    """A chart of metrics, smoothed where each outer step has one; None where none has."""
    lines, steps = list[Line](), [number(row, _STEP) for row in rows]
    for name in names:
        values = [number(row, name) for row in rows]
        if not any(map(math.isfinite, values)):
            continue
        is_dense = sum(map(math.isfinite, values)) > len(values) / 2
        if is_dense:
            values = _running_mean(values, _width(len(values)))
        lines.append(Line(name, _NEUTRAL if is_dense else _STRONG, values))
    if not lines:
        return None
    kept = [k for k in range(len(steps)) if len(steps) <= _POINTS or _is_kept(k, len(steps), lines)]
    thinned = [line.__class__(line.name, line.look, [line.values[k] for k in kept]) for line in lines]
    return chart_of(title, [steps[k] for k in kept], thinned, "outer step", ylabel)


def _is_kept(k: int, count: int, lines: Sequence[Line]) -> bool:
    """Every so many-th row, and those of a metric that few rows have."""
    sparse = any(line.look is _STRONG and math.isfinite(line.values[k]) for line in lines)
    return sparse or k == count - 1 or k % math.ceil(count / _POINTS) == 0


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    """Over finite values alone."""
    found = []
    for k in range(len(values)):
        part = [v for v in values[max(0, k - width + 1) : k + 1] if math.isfinite(v)]
        found.append(sum(part) / len(part) if part else math.nan)
    return found


def diagnostics_sections(folder: Path) -> list[Section]:
    """What each optimizer that has diagnostics does."""
    made = []
    for path in sorted(folder.glob("diagnostics_*.csv")):
        name = path.stem.removeprefix("diagnostics_")
        rows = read_csv(path, "step", "loss")
        charts = _diagnostics(rows)
        parts = [Charts(charts, "Medians over problems, for each tensor of the optimizee.")] if charts else []
        parts = parts or pictures(folder, {f"{path.stem}.png": f"What {name} does over an episode"})
        if parts:
            made.append(Section(f"Diagnostics of {name}", parts, folded=True))
    return made


def _diagnostics(rows: Rows) -> list[Chart]:
    """A chart for each quantity, with a curve for each tensor that has it."""
    if not rows:
        return []
    groups: dict[str, list[str]] = {}
    for name in rows[0]:
        if name != "step":
            groups.setdefault(name.partition("/")[0], []).append(name)
    tensors = dict.fromkeys(name.partition("/")[2] or "of the problem" for names in groups.values() for name in names)
    shown = looks(tensors, ["of the problem"])
    is_told = {q: any(number(row, n) != 0 for row in rows for n in names) for q, names in groups.items()}
    return [_quantity(quantity, names, rows, shown) for quantity, names in groups.items() if is_told[quantity]]


def _quantity(quantity: str, names: Sequence[str], rows: Rows, shown: Mapping[str, Look]) -> Chart:
    kept = [k for k in range(len(rows)) if k % math.ceil(len(rows) / _POINTS) == 0]
    lines = []
    for name in names:
        tensor = name.partition("/")[2] or "of the problem"
        lines.append(Line(tensor, shown[tensor], [number(rows[k], name) for k in kept]))
    steps = [number(rows[k], "step") for k in kept]
    return chart_of(quantity, steps, lines, "inner step", _UNITS.get(quantity, quantity), log=quantity in _LOG)


_LOG = ("loss", "lr", "damping")
_ENERGY = "units of the loss"
_UNITS = {"energy": _ENERGY, "kinetic": _ENERGY, "spring": _ENERGY, "tank": _ENERGY, "lr": "learning rate"}
