"""Speed of meta-training: every optimizer with every estimator, the whole outer loop, without compilation."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from _measure import Found, contest, number, say, table

from suite import cases
from suite.options import Options
from suite.outer_loop import HAS_COMPILATION, Loop, Ours

UNIT = "task-steps/s"


def sizes(optimizer: str, task: str, options: Options) -> Loop:
    """A loop; episodes have two windows, and a repetition has whole episodes."""
    if task == "quadratic":
        problems, truncation, outer_steps = 64, 20, 4
    elif optimizer == "lstm":
        problems, truncation, outer_steps = 1, 10, 2
    else:
        problems, truncation, outer_steps = 4, 20, 2
    if options.quick:
        problems, truncation, outer_steps = 2, 2, 2
    return Loop(problems, (2 * truncation,), outer_steps, truncation)


def measured(options: Options) -> Found:
    """The whole matrix; the quick one has its first row and first columns."""
    found = Found()
    for task in cases.TASKS:
        made = cases.task(task, options.data)
        for optimizer in cases.OPTIMIZERS:
            say(f" {optimizer}, {task}")
            loop = sizes(optimizer, task, options)
            contestants = {}
            for name, make in cases.estimators().items():
                label, why = f"{optimizer}, {task}, {name}", cases.refused(optimizer, name)
                if not _is_wanted(optimizer, task, name, options):
                    continue
                if why:
                    found.skipped[label] = why
                    continue
                make_optimizer = functools.partial(cases.optimizer, optimizer, task)
                contestants[label] = Ours(make_optimizer, made, make, loop)
            settings = vars(loop) | ({"compile": False} if HAS_COMPILATION else {})
            found.add(contest(contestants, options.repetitions, unit=UNIT, settings=settings))
    return found


def _is_wanted(optimizer: str, task: str, estimator: str, options: Options) -> bool:
    if not options.quick:
        return True
    return estimator == "truncated order 2" if task == "quadratic" else optimizer == "port_hamiltonian"


def tables(entries: list[dict[str, Any]]) -> Iterator[str]:
    """Medians, optimizers by estimators, one table for each task."""
    found = {tuple(e["name"].split(", ")): e for e in entries}
    for task in cases.TASKS:
        here = [key for key in found if key[1] == task]
        columns = list(dict.fromkeys(key[2] for key in here))
        rows = []
        for name in dict.fromkeys(key[0] for key in here):
            row = [found.get((name, task, column)) for column in columns]
            rows.append([f"`{name}`", *("–" if e is None else number(e["median"]) for e in row)])
        if rows:
            yield f"{task}, {UNIT}:\n\n{table(['', *columns], rows)}"
    widest = max(((e["max"] - e["min"]) / e["median"] for e in entries), default=0.0)
    yield f"Medians; the widest range of repetitions is {100 * widest:.0f} % of its median. All values are in the JSON."
