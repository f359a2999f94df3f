"""Reading MNIST, drawing mini-batches, and drawing problems."""

from __future__ import annotations

import time
from collections.abc import Callable

from _measure import Found, contest

from ph_l2o.keys import ProblemKeys
from ph_l2o.tasks import Task
from suite import cases, fresh
from suite.options import Options


def measured(options: Options) -> Found:
    """All three."""
    found = Found()

    def read() -> float:
        return fresh.ask("probe_mnist", {"data": str(options.data)}, threads=options.threads)

    cold = {"mnist, read in a fresh process": read}
    found.add(contest(cold, options.repetitions, unit="s", better="lower", warm_up=not options.quick))
    mnist = cases.task("mnist", options.data)
    draws = {"mnist, mini-batches of 128, 4 problems": mini_batches(mnist, 4, options.pick(200, 10))}
    found.add(contest(draws, options.repetitions, unit="mini-batches/s"))
    samples = {
        "quadratic, 64 problems": problems(cases.task("quadratic", options.data), 64, options.pick(50, 2)),
        "mnist, 4 problems": problems(mnist, 4, options.pick(50, 2)),
    }
    found.add(contest(samples, options.repetitions, unit="problems/s"))
    return found


def mini_batches(task: Task, count: int, steps: int) -> Callable[[], float]:
    """Mini-batches of all problems in a second, drawn in windows of 50 steps or less."""
    problem = task.sample(ProblemKeys(0, "train", 0, range(count)))
    window = min(steps, 50)

    def measure() -> float:
        began = time.perf_counter()
        for first in range(0, steps, window):
            for _ in problem.batches(first, window):
                pass
        return steps * count / (time.perf_counter() - began)

    return measure


def problems(task: Task, count: int, batches: int) -> Callable[[], float]:
    """Problems in a second, drawn in batches."""

    def measure() -> float:
        began = time.perf_counter()
        for episode in range(batches):
            task.sample(ProblemKeys(0, "train", episode, range(count)))
        return batches * count / (time.perf_counter() - began)

    return measure
