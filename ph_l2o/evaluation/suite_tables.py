"""A suite's outcome as tables for people."""

from __future__ import annotations

from ph_l2o.evaluation.estimates import Interval, mean
from ph_l2o.evaluation.suite_outcome import SuiteOutcome
from ph_l2o.evaluation.tables import aligned

WORDS = {"adam": "to Adam", "best_baseline": "to best baseline"}


def plain_tables(comparison: SuiteOutcome) -> str:
    """Losses; ratios of the optimizers that are judged; and over tasks, those of all."""
    done, of = len(comparison.tasks), comparison.num_tasks
    title = f"{comparison.name}: {of} tasks" if done == of else f"{comparison.name}: {done} of {of} tasks so far"
    parts = [f"{title}; mean loss over the last tenth of the steps", _losses(comparison)]
    if any(comparison.summary.values()):
        parts += [
            "loss of the reference / loss of the optimizer, 0 where it diverged [95 %]",
            _ratios(comparison),
            "over tasks: interquartile mean of the ratios [95 %], and the worst of them",
            _summary(comparison),
        ]
    return "\n\n".join(parts)


def _losses(comparison: SuiteOutcome) -> str:
    header = ["task", "steps", "parameters", *comparison.roles]
    lines = []
    for task, outcome in comparison.tasks.items():
        runs = outcome.runs
        size = next(iter(runs.values())).coordinates
        diverged = {n: f" ({k} div.)" if (k := int(r.diverged.sum())) else "" for n, r in runs.items()}
        losses = [f"{mean(run.losses):.4g}{diverged[n]}" for n, run in runs.items()]
        lines.append([task, str(outcome.horizon), f"{size:,}", *losses])
    return aligned(header, lines) if lines else ""


def _ratios(comparison: SuiteOutcome) -> str:
    judged = comparison.judged()
    keys = list(next(iter(comparison.summary.values())))
    header = ["task", *(f"{name} {WORDS[key]}" for name in judged for key in keys), "best baseline"]
    lines = []
    for task, outcome in comparison.tasks.items():
        cells = [_interval(*outcome.ratios[name][key]) for name in judged for key in keys]
        lines.append([task, *cells, outcome.best_baseline or "–"])
    return aligned(header, lines)


def _summary(comparison: SuiteOutcome) -> str:
    keys = list(next(iter(comparison.summary.values())))
    columns = [text for key in keys for text in (WORDS[key], "worst", "better on")]
    lines = []
    for name, parts in comparison.summary.items():
        cells = []
        for key in keys:
            s = parts[key]
            cells += [_interval(s.iqm, s.ci95), f"{s.worst:.3g} ({s.worst_task})", f"{s.better} of {s.num_tasks}"]
        diverged = [run.diverged for outcome in comparison.tasks.values() for run in [outcome.runs[name]]]
        lines.append([name, *cells, f"{sum(int(d.sum()) for d in diverged)} of {sum(map(len, diverged))}"])
    return aligned(["optimizer", *columns, "diverged"], lines)


def _interval(value: float, ci95: Interval) -> str:
    return f"{value:.3g} [{ci95[0]:.3g}, {ci95[1]:.3g}]"
