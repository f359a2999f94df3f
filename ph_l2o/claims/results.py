"""Measure a claim: every row on the same problems, then estimates, contrasts, and one dictionary of it all."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ph_l2o.checkpoints import SHIPPED, load_weights
from ph_l2o.checks import nearest
from ph_l2o.claims import contrasts as between
from ph_l2o.claims.kinds import KINDS, SHARES, Measured, measured
from ph_l2o.claims.spec import OF_KIND, Claim, Measurement, Row
from ph_l2o.claims.weights import Found, weights_sum, with_changes
from ph_l2o.errors import ConfigError
from ph_l2o.evaluation import estimates as stats
from ph_l2o.evaluation.baselines import ready, schedule_of
from ph_l2o.evaluation.estimates import Array
from ph_l2o.evaluation.modes import InMode
from ph_l2o.evaluation.result_files import provenance
from ph_l2o.evaluation.tuning import default_num_problems, tune
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.tasks.task import Task

log = logging.getLogger(__name__)

_ESTIMATES = ("mean", "median", "ratio", "difference")  # of a row, which `intervals` can draw in place of a measure


@dataclass(frozen=True, eq=False)
class Bench:
    """What measurements are made with.

    Attributes:
        task: From overrides to a task that is ready.
        weights: By name of the training.
        cache_dir: Where single measurements and tunings are kept.
        seed: Of the problems.
        plugins: Modules that may be imported for an optimizer's class.
    """

    task: Callable[[Sequence[str]], Task]
    weights: Mapping[str, Found]
    cache_dir: Path
    seed: int
    plugins: tuple[str, ...] = ()


def claim_result(claim: Claim, bench: Bench) -> dict[str, Any]:
    """All that the page and the figures say of a claim, as JSON can hold it but for infinities."""
    began, measurements = time.monotonic(), {}
    values: dict[str, between.Values] = {}
    for name, measurement in claim.measurements.items():
        log.info("%s: %s (%s)", claim.name, name, measurement.title)
        measurements[name], values[name] = _measure(claim, measurement, bench)
    return {
        "claim": claim.name,
        "title": claim.title,
        "claimed": claim.claimed,
        "summary": claim.summary,
        "notes": claim.notes,
        "command": f"python evaluate.py experiment=study_{claim.name}",
        "seed": bench.seed,
        **provenance(),
        "seconds": round(time.monotonic() - began, 1),
        "weights": {name: weights_sum(bench.weights[name].optimizer) for name in claim.trainings},
        "trainings": {name: list(training.overrides) for name, training in claim.trainings.items()},
        "after": {name: training.after for name, training in claim.trainings.items() if training.after},
        "measurements": _with_drawn_curves(claim, measurements),
        "figure": {"says": claim.says, "panels": [vars(panel) for panel in claim.panels]} if claim.panels else None,
        "contrasts": [
            between.contrast_result(c, values, claim.measurements[c.measurement].measure) for c in claim.contrasts
        ],
    }


def _with_drawn_curves(claim: Claim, measurements: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without curves that no panel shows: result files stay small."""
    for name, measurement in measurements.items():
        panels = [panel for panel in claim.panels if panel.measurement == name and panel.draw in ("curves", *OF_KIND)]
        for row, content in measurement["rows"].items():
            if not any(row in (panel.rows or (row,)) for panel in panels):
                content["curves"] = {}
    return measurements


def _measure(claim: Claim, measurement: Measurement, bench: Bench) -> tuple[dict[str, Any], between.Values]:
    task, kind = bench.task(measurement.task), KINDS[measurement.kind]
    rows: dict[str, dict[str, Any]] = {}
    values: dict[str, dict[str, Array]] = {}
    for name, row in measurement.rows.items():
        entries, settings = _entries(row, task, measurement, bench)
        found = [
            measured(
                measurement.kind, f"{claim.name}-{measurement.name}-{name}", entry, task,
                cache_dir=bench.cache_dir / "measured", options=dict(measurement.options),
                tuning_problems=measurement.tuning_problems, horizon=measurement.horizon,
                num_problems=measurement.num_problems, seed=bench.seed,
            )
            for entry in entries
        ]  # fmt: skip
        values[name] = {measure: np.stack([f.values[measure] for f in found]) for measure in found[0].values}
        for key, asked in _asked(claim, measurement).items():
            if asked not in values[name]:
                raise ConfigError(f"claims.{claim.name}.{key}={asked}: {nearest(asked, values[name])}")
        rows[name] = {**settings, **found[0].told, **_row(row, values[name], measurement.measure, found)}
        log.info("  %s: %.4g", row.label, rows[name]["mean"]["value"])
    if measurement.reference is not None:
        against = values[measurement.reference][measurement.measure]
        for name in rows:
            own = values[name][measurement.measure]
            rows[name]["difference"] = between.difference(own, against)
            is_median = kind.statistic == "median"
            rows[name]["ratio"] = (between.median_ratio if is_median else between.ratio)(own, against)
    return {
        "kind": measurement.kind,
        "statistic": kind.statistic,
        "title": measurement.title,
        "task": list(measurement.task),
        "horizon": measurement.horizon,
        "num_problems": measurement.num_problems,
        "measure": measurement.measure,
        "reference": measurement.reference,
        "options": dict(measurement.options),
        "published": dict(measurement.published),
        "tabled": kind.tabled,
        "scene": None if kind.scene is None else kind.scene(task, seed=bench.seed, **measurement.options),
        "rows": rows,
    }, values


def _asked(claim: Claim, measurement: Measurement) -> dict[str, str]:
    """The measures that a claim reads of a measurement, by where it names them."""
    asked: dict[str, str | None] = {f"measurements.{measurement.name}.measure": measurement.measure}
    for number, contrast in enumerate(claim.contrasts):
        if measurement.name in (contrast.measurement, *contrast.across):
            asked[f"contrasts[{number}].measure"] = contrast.measure
    for number, panel in enumerate(claim.panels):
        if panel.draw == "intervals" and panel.measurement == measurement.name and panel.of not in _ESTIMATES:
            asked[f"figure.panels[{number}].of"] = panel.of
    return {key: measure for key, measure in asked.items() if measure is not None}


def _row(row: Row, values: Mapping[str, Array], measure: str, found: Sequence[Measured]) -> dict[str, Any]:
    own = values[measure]
    summary = stats.summarize(own.ravel())
    return {
        "label": row.label,
        "recipe": row.recipe,
        "published": row.published,
        "again": row.again,
        "seeds": len(found),
        "mean": between.mean_estimate(own),
        "median": between.median_estimate(own),
        "geometric_mean": summary.geometric_mean,
        "iqm": summary.iqm,
        "spread_of_means": between.spread_of_means(own.ravel()),
        "diverged": int(values["diverged"].sum()) if "diverged" in values else found[0].told.get("diverged"),
        "measures": {
            name: between.mean_estimate(given, is_share=name in SHARES)
            for name, given in values.items()
            if name != "diverged"
        },
        "curves": found[0].curves,
    }


def _entries(
    row: Row, task: Task, measurement: Measurement, bench: Bench
) -> tuple[list[LearnedOptimizer | str], dict[str, Any]]:
    """The optimizers of a row, one for each seed, and what is to be told of them.

    A baseline's name stays where the kind of measurement tunes by itself.
    """
    if row.trainings:
        made = [with_changes(bench.weights[n].optimizer, row.changed, plugins=bench.plugins) for n in row.trainings]
        return made, {"trainings": list(row.trainings), "set": dict(row.changed)}
    assert row.other is not None
    name, *modes = row.other.split("+")
    if name in SHIPPED:
        made = load_weights(SHIPPED[name])
        return [InMode(made, tuple(modes)).at(measurement.horizon) if modes else made], {"shipped": row.other}
    fixed = ready(row.other, measurement.horizon)
    if fixed is not None:
        return [fixed], {"baseline": row.other, **_hyperparameters(fixed)}
    if KINDS[measurement.kind].tunes:
        return [row.other], {"baseline": row.other}
    source = bench.task(row.tuned_on) if row.tuned_on else task
    number = measurement.tuning_problems or default_num_problems(source, measurement.num_problems)
    tuned = tune(
        row.other, source, horizon=measurement.horizon, num_problems=number, seed=bench.seed,
        cache_dir=bench.cache_dir / "tuned",
    )  # fmt: skip
    told = {"baseline": row.other, "tuned_on": list(row.tuned_on), "tuning_problems": number}
    told |= {"tuning_runs": len(tuned.table) * number, **_hyperparameters(tuned.optimizer), **tuned.hyperparameters}
    return [tuned.optimizer], told


def _hyperparameters(optimizer: Any) -> dict[str, Any]:
    """Learning rate and schedule."""
    return {"lr": float(f"{optimizer.hyperparameters['lr'].item():.4g}"), "schedule": schedule_of(optimizer)}
