"""A suite's outcome as tables for people."""

from __future__ import annotations

from collections.abc import Callable

from ph_l2o.evaluation.estimates import Array, Interval, mean
from ph_l2o.evaluation.suite_outcome import SuiteOutcome
from ph_l2o.evaluation.suite_ratios import BEST, SPEED, words
from ph_l2o.evaluation.suite_runs import Run
from ph_l2o.evaluation.tables import fitted, wrapped

_ABSENT = "–"


def plain_tables(comparison: SuiteOutcome) -> str:
    """Losses; ratios of the optimizers that are judged; and over tasks, those of all."""
    done, of = len(comparison.tasks), comparison.num_tasks
    title = f"{comparison.name}: {of} tasks" if done == of else f"{comparison.name}: {done} of {of} tasks so far"
    parts = [f"{title}; mean loss over the last tenth of the steps", _losses(comparison, lambda run: run.losses)]
    if any(run.held_out is not None for outcome in comparison.tasks.values() for run in outcome.runs.values()):
        parts += ["held-out loss at the end", _losses(comparison, lambda run: run.held_out)]
    if any(comparison.summary.values()):
        parts += [
            "loss of the reference / loss of the optimizer, 0 where it diverged [95 %]",
            _ratios(comparison),
            "over tasks: interquartile mean of the ratios [95 %], and the worst of them",
            _summary(comparison),
        ]
    return "\n\n".join(parts)


def _losses(comparison: SuiteOutcome, of: Callable[[Run], Array | None]) -> str:
    header = ["task", "steps", "parameters", *comparison.roles]
    lines = []
    for task, outcome in comparison.tasks.items():
        cells = []
        for run in outcome.runs.values():
            values, diverged = of(run), int(run.diverged.sum())
            text = _ABSENT if values is None else f"{mean(values):.4g}"
            cells.append(f"{text} ({diverged} div.)" if diverged else text)
        size = next(iter(outcome.runs.values())).coordinates
        if any(of(run) is not None for run in outcome.runs.values()):
            lines.append([task, str(outcome.horizon), f"{size:,}", *cells])
    return wrapped(header, lines) if lines else ""


def _ratios(comparison: SuiteOutcome) -> str:
    """A line for each task and optimizer that is judged."""
    keys = list(next(iter(comparison.summary.values())))
    lines = []
    for task, outcome in comparison.tasks.items():
        label, best = task, outcome.best_baseline or _ABSENT
        for name in comparison.judged():
            ratios = outcome.ratios[name]
            cells = [_interval(*ratios[key]) if key in ratios else _ABSENT for key in keys]
            if SPEED in ratios and outcome.steps[name] is None:
                cells[keys.index(SPEED)] += " (not reached)"
            lines.append([label, name, *cells, best])
            label = best = ""
    header = ["task", "optimizer", *map(words, keys), "best baseline"]
    first = [words(key) for key in (BEST, *keys) if key in keys]
    return fitted(header, lines, ["task", "optimizer", *dict.fromkeys(first), "best baseline"])


def _summary(comparison: SuiteOutcome) -> str:
    """A line for each optimizer and reference or measure."""
    lines = []
    for name, parts in comparison.summary.items():
        runs = [outcome.runs[name] for outcome in comparison.tasks.values()]
        diverged = f"{sum(int(run.diverged.sum()) for run in runs)} of {sum(len(run.diverged) for run in runs)}"
        first = [diverged, f"{1e3 * mean([run.step_seconds for run in runs]):.3g}"]
        for key, s in parts.items():
            worst = f"{s.worst:.3g} ({s.worst_task})"
            better = f"{s.better} of {s.num_tasks}"
            lines.append([name, words(key), _interval(s.iqm, s.ci95), worst, better, *first])
            name, first = "", ["", ""]
    header = ["optimizer", "ratio", "IQM", "worst", "above 1 on", "diverged", "ms/step"]
    return fitted(header, lines, ["optimizer", "ratio", "IQM", "above 1 on", "worst", "diverged", "ms/step"])


def _interval(value: float, ci95: Interval) -> str:
    return f"{value:.3g} [{ci95[0]:.3g}, {ci95[1]:.3g}]"
