"""What can be measured of an optimizer on a task, by name: a value of each problem, and curves over the steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ph_l2o.evaluation.baselines import Entry, baseline
from ph_l2o.evaluation.cache import cached
from ph_l2o.evaluation.escapes import measure_escapes
from ph_l2o.evaluation.estimates import Array, curve
from ph_l2o.evaluation.generalisation import measure_generalisation
from ph_l2o.evaluation.runner import evaluate_optimizer
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.tasks.task import Task

SHARES = ("diverged", "escaped")  # values that are 0 or 1
POINTS = 101  # steps at which curves are kept


class Measured(NamedTuple):
    """Of an optimizer on the P problems of a measurement.

    Attributes:
        values: By measure, one of each problem, `(P,)`; what is not finite is +∞.
        curves: By what is drawn, each with `steps` and the quartiles over problems `median`, `low` and `high`.
        told: What else a row has, as `lr` and `schedule` of a baseline that the measurement tuned.
    """

    values: dict[str, Array]
    curves: dict[str, dict[str, list[float]]]
    told: dict[str, Any]


class Kind(NamedTuple):
    """A kind of measurement.

    Attributes:
        run: `run(optimizer, task, horizon=…, num_problems=…, seed=…, **options)` measures.
        measure: Of `Measured.values`, the one that counts where none is named.
        version: A whole number that changes when `run` gives other results.
        computing: Modules that compute them.
        tunes: Whether `run` takes a baseline's name and `tuning_problems`, and tunes for its own measure.
        statistic: `mean` or `median`, which tables and figures show.
        scene: `scene(task, seed=…, **options)` gives what figures show beside the rows, as numbers, lists and texts.
        tabled: Whether the page has a table of it; else it is for a figure alone.
    """

    run: Callable[..., Measured]
    measure: str
    version: int
    computing: tuple[str, ...]
    tunes: bool
    statistic: str
    scene: Callable[..., dict[str, Any]] | None = None
    tabled: bool = True


KINDS: dict[str, Kind] = {}


def register_kind(
    name: str, *, measure: str, version: int = 1, tunes: bool = False, statistic: str = "mean",
    scene: Callable[..., dict[str, Any]] | None = None, tabled: bool = True,
) -> Callable[[Callable[..., Measured]], Any]:  # fmt: skip
    """Make a function known as a kind of measurement; see `Kind`.

    Args:
        name: For `kind:` of a measurement.
        measure: The value that counts where none is named.
        version: To be raised when the function gives other results.
        tunes: Whether it takes baselines' names and tunes them.
        statistic: `mean` or `median`.
        scene: Of what figures show beside the rows; None: nothing.
        tabled: Whether the page has a table of it.

    Raises:
        ValueError: If there is one of this name.
    """

    def register(run: Callable[..., Measured]) -> Callable[..., Measured]:
        if name in KINDS:
            raise ValueError(f"kind={name}: there is one of this name already; choose another")
        KINDS[name] = Kind(run, measure, version, (run.__module__,), tunes, statistic, scene, tabled)
        return run

    return register


@register_kind("comparison", measure="final")
def measure_losses(optimizer: LearnedOptimizer, task: Task, *, horizon: int, num_problems: int, seed: int) -> Measured:
    """Losses at the end, and over the steps; `final`, `last10`, `all`, `diverged`, and the task's test metrics."""
    result = evaluate_optimizer(optimizer, task, horizon=horizon, num_problems=num_problems, seed=seed)
    values = {"final": result.final, "last10": result.last10, "all": result.all}
    values |= {"diverged": result.diverged.astype(float), **result.metrics}
    return Measured(values, {"loss": thinned(result.losses)}, {})


@register_kind("escapes", measure="steps", tunes=True, statistic="median")
def count_escapes(
    optimizer: Entry,
    task: Task,
    *,
    horizon: int,
    num_problems: int,
    seed: int,
    tuning_problems: int | None,
    tuning_share: float = 0.5,
) -> Measured:
    """Inner steps until a saddle is escaped, ∞ if it never is within the horizon; and whether it was, `escaped`.

    Baselines are tuned for the fewest steps in which the share `tuning_share` of the validation problems is escaped.
    """
    sizes: dict[str, Any] = {"tuning_share": tuning_share}
    sizes |= {} if tuning_problems is None else {"tuning_problems": tuning_problems}
    found = measure_escapes(
        {"it": optimizer}, {task.name: task}, horizon=horizon, num_problems=num_problems, seed=seed, **sizes
    )
    (row,), (steps,) = found.rows, found.steps.values()
    values = {"steps": steps, "escaped": np.isfinite(steps).astype(float)}
    told: dict[str, Any] = {"diverged": row["diverged"]}
    if row["hyperparameters"] is not None:
        told |= {"lr": short(row["hyperparameters"]["lr"]), "schedule": row["schedule"]}
    return Measured(values, {}, told)


@register_kind("generalisation", measure="test_loss")
def compare_held_out(
    optimizer: LearnedOptimizer, task: Task, *, horizon: int, num_problems: int, seed: int, levels: list[float],
    **options: Any,
) -> Measured:  # fmt: skip
    """Losses on data that is trained on and on other data, accuracy, sharpness: at equal steps and equal training loss.

    The first have their names alone, `test_loss`; the others that of the level too, `test_loss_at_0.3`. What a problem
    does not reach counts as infinite, of accuracies as 0.

    Args:
        optimizer: The optimizer.
        task: The task.
        horizon: Inner steps.
        num_problems: Problems.
        seed: Of the problems.
        levels: Training losses.
        **options: More of `measure_generalisation`.
    """
    found = measure_generalisation(
        {"it": optimizer}, task, horizon=horizon, num_problems=num_problems, seed=seed, levels=levels, **options
    )
    at_end, *at_levels = found.rows
    values = _reached(at_end["values"], "")
    for level, row in zip(levels, at_levels, strict=True):
        values |= _reached(row["values"], f"_at_{level:g}")
    curve = found.curves["it"]
    lines = {name: [short(y) for y in part] for name, part in curve._asdict().items()}
    return Measured(
        values, {"training loss": {"steps": found.steps.tolist(), **lines}}, {"diverged": at_end["diverged"]}
    )


_AT_END, _AT_LEVELS = (
    ("train_loss", "test_loss", "accuracy", "sharpness"),
    ("test_loss", "accuracy", "sharpness", "step"),
)


def _reached(values: dict[str, list[Any]], suffix: str) -> dict[str, Array]:
    found = {}
    for name in _AT_LEVELS if suffix else _AT_END:
        missing = 0.0 if name == "accuracy" else np.inf
        given = values.get(name, [])
        found[name + suffix] = np.array([missing if x is None or np.isnan(x) else float(x) for x in given])
    return {name: column for name, column in found.items() if len(column)}


def thinned(values: Array) -> dict[str, list[float]]:
    """Quartiles over problems of `(T + 1, P)` at about a hundred steps; of many steps, in equal distances of √step."""
    last = len(values) - 1
    places = np.linspace(0, 1, min(last + 1, POINTS))
    steps = np.unique((last * (places if last < 2 * POINTS else places**2)).round().astype(int))
    quartiles = curve(values[steps])
    found = {name: [short(y) for y in getattr(quartiles, name)] for name in ("median", "low", "high")}
    return {"steps": [float(s) for s in steps], **found}


def short(value: float) -> float:
    """Four digits, as curves in result files have."""
    return float(f"{value:.4g}")


def measured(
    kind: str, label: str, entry: LearnedOptimizer | str, task: Task, *, cache_dir: Path, options: dict[str, Any],
    tuning_problems: int | None, **sizes: int,
) -> Measured:  # fmt: skip
    """Measure, or read what was measured of the same before.

    Args:
        kind: One of `KINDS`.
        label: Begins the file's name.
        entry: The optimizer; the name of a baseline only for kinds that tune.
        task: The task.
        cache_dir: Folder of the files.
        options: Of the kind.
        tuning_problems: For kinds that tune.
        **sizes: `horizon`, `num_problems`, `seed`.
    """
    how = KINDS[kind]
    arguments = {**sizes, **options} | ({"tuning_problems": tuning_problems} if how.tunes else {})
    settings = {"kind": kind, "version": how.version, **arguments}
    if isinstance(entry, str):
        settings["baseline"] = entry
        optimizer = baseline(entry, sizes["horizon"])
    else:
        optimizer = entry
    return cached(
        cache_dir, label, settings, optimizer, task, make=lambda: how.run(entry, task, **arguments),
        write=_written, read=_read, computing=how.computing,
    )[0]  # fmt: skip


def _written(found: Measured) -> dict[str, Any]:
    return {**found._asdict(), "values": {name: values.tolist() for name, values in found.values.items()}}


def _read(content: dict[str, Any]) -> Measured:
    values = {name: np.array([float(v) for v in given]) for name, given in content["values"].items()}
    curves = {
        name: {key: [float(y) for y in given] for key, given in lines.items()}
        for name, lines in content["curves"].items()
    }
    return Measured(values, curves, dict(content["told"]))
