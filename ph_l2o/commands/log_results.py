"""Results of comparisons in the loggers: numbers by which runs are sorted, curves, the table, pictures."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.loggers import Logger

from ph_l2o.evaluation import Comparison, SuiteComparison
from ph_l2o.evaluation.comparison_rows import Row
from ph_l2o.evaluation.diagnostics import Diagnostics
from ph_l2o.evaluation.estimates import log_losses, mean, paired_difference
from ph_l2o.evaluation.suite_ratios import json_key
from ph_l2o.meta import MetricsCSV, WandbRun
from ph_l2o.reports.values import inverse

Numbers = dict[str, float]

_OF_ROW = {"last10_mean": "last10", "all_mean": "all", "diverged": "diverged", "accuracy": "accuracy",
           "test_loss": "test_loss", "learning_rate": "learning_rate"}  # fmt: skip
_TRAINED = "trained"  # the name, in every run, of what it trained


def log_comparison(
    loggers: Iterable[Logger], comparison: Comparison, folder: Path, *, trained: str | None = None
) -> None:
    """Log a comparison: `test/<optimizer>/final`, `…/ratio_to_<baseline>`, … and, in W&B, curves, table and picture.

    Args:
        loggers: Of the run; `metrics.csv` has rows of a training alone.
        comparison: What to log.
        folder: Where `curves.png` is.
        trained: Which optimizer the run trained; its numbers stand under `test/trained/` too.
    """
    names = _key_words(row["optimizer"] for row in comparison.rows)
    numbers: Numbers = {"test/horizon": float(comparison.horizon)}
    for row in comparison.rows:
        of_row = _numbers(row, comparison, names)
        for name in (names[row["optimizer"]], *([_TRAINED] if row["optimizer"] == trained else [])):
            numbers |= {f"test/{name}/{what}": value for what, value in of_row.items()}
    curves = {f"curves/{names[n]}": curve.median.tolist() for n, curve in comparison.curves.items()}
    if trained is not None:
        curves[f"curves/{_TRAINED}"] = comparison.curves[trained].median.tolist()
    _log(loggers, numbers, curves, {"test/comparison": comparison}, {"test/curves": folder / "curves.png"})


def _numbers(row: Row, comparison: Comparison, names: Mapping[str, str]) -> Numbers:
    final, ratio = row["final"], row["ratio_to_best_baseline"]
    found = {"final": final["mean"], "final_low": final["ci95"][0], "final_high": final["ci95"][1]}
    found |= {"final_median": final["median"]} | {name: row[key] for key, name in _OF_ROW.items()}
    found["step_ms"] = row["step_seconds"] and 1000 * row["step_seconds"]
    if ratio:
        low, high = map(inverse, reversed(ratio["ci95"]))  # above 1 is better, as in suites and reports
        key = "ratio_to_best_baseline"
        found |= {key: inverse(ratio["geometric_mean"]), f"{key}_low": low, f"{key}_high": high}
        own = comparison.finals[row["optimizer"]]
        for other in comparison.rows:
            if other["kind"] == "baseline" and other is not row:
                logs = paired_difference(log_losses(own), log_losses(comparison.finals[other["optimizer"]]))
                found[f"ratio_to_{names[other['optimizer']]}"] = float(np.exp(-mean(logs)))
    return {name: float(value) for name, value in found.items() if value is not None}


def log_suite(loggers: Iterable[Logger], comparison: SuiteComparison, pictures: Iterable[Path]) -> None:
    """Log a suite: `suite/<optimizer>/ratio_to_<reference>` over tasks, `suite/<optimizer>/<task>/loss`, …"""
    names = _key_words(comparison.roles)
    numbers: Numbers = {}
    for name, parts in comparison.summary.items():
        for key, part in parts.items():
            what = f"suite/{names[name]}/{json_key(key)}"
            numbers |= {what: part.iqm, f"{what}_low": part.ci95[0], f"{what}_high": part.ci95[1]}
            numbers |= {f"{what}_worst": part.worst, f"{what}_better": part.better}
    for row in comparison.rows:
        where = f"suite/{names[row['optimizer']]}/{row['task']}"
        numbers[f"{where}/loss"] = row["loss"]
        numbers |= {f"{where}/{k}": v["ratio"] for k, v in row.items() if isinstance(v, dict) and "ratio" in v}
    curves = {
        f"curves/{task}/{names[n]}": run.curve.median.tolist()
        for task, outcome in comparison.tasks.items()
        for n, run in outcome.runs.items()
    }
    shown = {f"suite/{path.stem.removeprefix('suite_')}": path for path in pictures}
    _log(loggers, numbers, curves, {"suite/comparison": comparison}, shown)


def log_diagnostics(loggers: Iterable[Logger], name: str, found: Diagnostics, picture: Path) -> None:
    """Log what an optimizer did in an episode, medians over problems: `inner/<optimizer>/<what>/<tensor>`."""
    (word,) = _key_words([name]).values()
    curves = {f"inner/{word}/{what}": np.median(x, 1).tolist() for what, x in found.numbers.items()}
    for what, values in found.by_tensor.items():
        medians = np.median(values, 1).T
        curves |= {f"inner/{word}/{what}/{t}": x.tolist() for t, x in zip(found.tensors, medians, strict=True)}
    _log(loggers, {}, curves, {}, {f"inner/{word}/picture": picture})


def _log(
    loggers: Iterable[Logger],
    numbers: Numbers,
    curves: Mapping[str, list[float]],
    tables: Mapping[str, Any],
    pictures: Mapping[str, Path],
) -> None:
    for logger in loggers:
        if isinstance(logger, WandbRun):
            logger.log_curves(curves)
            for key, table in tables.items():
                logger.log_table(key, dataframe=table.to_frame())
            logger.log_pictures(pictures)
            logger.log_summary(numbers)
        elif not isinstance(logger, MetricsCSV) and numbers:
            logger.log_metrics({k: v for k, v in numbers.items() if math.isfinite(v)})
            logger.save()


def _key_words(names: Iterable[str]) -> dict[str, str]:
    """Names as parts of keys: W&B sorts and plots by keys of letters, digits and underscores."""
    found: dict[str, str] = {}
    for name in names:
        word = re.sub(r"\W+", "_", name).strip("_")
        while word in found.values():
            word += "_"
        found[name] = word
    return found
