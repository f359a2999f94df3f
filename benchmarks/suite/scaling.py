"""Cost against the number of problems, parameters, inner steps of an episode, and processes."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from _measure import Found, contest, entry, say

from ph_l2o.estimators import Truncated
from ph_l2o.inner import run
from ph_l2o.keys import ProblemKeys
from suite import cases, fresh
from suite.diagonal import Diagonal
from suite.options import Options
from suite.outer_loop import Loop, Ours

UNIT = "task-steps/s"
NAME = "port_hamiltonian"
CHEAP = "adam"  # for the longest episodes
TRUNCATION = 20
STEPS = 10  # inner steps without meta-gradient
MANY = 10**6  # coordinates beyond which a repetition has fewer steps, and no meta-gradient


def measured(options: Options) -> Found:
    """All four."""
    found = Found()
    for part in (problems, parameters, horizons, processes):
        say(f" {part.__name__}")
        found.add(part(options))
    return found


def _ours(name: str, problems: int, horizon: int, outer_steps: int, truncation: int = TRUNCATION) -> Ours:
    loop = Loop(problems, (horizon,), outer_steps, truncation)
    make = functools.partial(cases.optimizer, name, "quadratic")
    return Ours(make, cases.Quadratic(), Truncated, loop)


def problems(options: Options) -> Found:
    """Meta-training on quadratics."""
    counts = (1, 4) if options.quick else (1, 4, 16, 64, 256, 1024)
    horizon, outer_steps = (2, 1) if options.quick else (40, 2)
    truncation = min(TRUNCATION, horizon)
    contestants = {f"problems, {n:,}": _ours(NAME, n, horizon, outer_steps, truncation) for n in counts}
    settings = {"horizon": horizon, "truncation": truncation, "outer_steps": outer_steps}
    return contest(contestants, options.repetitions, unit=UNIT, settings=settings)


def parameters(options: Options) -> Found:
    """One problem of many coordinates: with a meta-gradient of second order, and inner steps alone."""
    sizes = (10**3, 10**4) if options.quick else tuple(10**k for k in range(3, 8))
    contestants: dict[str, Callable[[], float]] = {}
    for n in sizes:
        loop = Loop(1, (4,), 2, 2)
        make = functools.partial(cases.optimizer, NAME)
        if n <= MANY:
            contestants[f"parameters, {n:,}, meta-training"] = Ours(make, Diagonal(n), Truncated, loop)
        contestants[f"parameters, {n:,}, inner steps"] = inner_steps(n, STEPS if n <= MANY else 1)
    return contest(contestants, options.repetitions, unit=UNIT, settings={"problems": 1, "truncation": 2})


def inner_steps(numel: int, count: int) -> Callable[[], float]:
    """Inner steps without meta-gradient; the last one also evaluates the loss."""
    optimizer = cases.optimizer(NAME)

    def measure() -> float:
        problem = Diagonal(numel).sample(ProblemKeys(0, "test", 0, range(1)))
        began = time.perf_counter()
        run(optimizer, problem, count)
        return count / (time.perf_counter() - began)

    return measure


def horizons(options: Options) -> Found:
    """Truncated back-propagation, whose speed and memory should not depend on the episode's length."""
    lengths = (20, 40) if options.quick else (100, 1000, 10_000)
    count = options.pick(16, 2)
    contestants = {f"horizon, {h:,}, speed": _ours(CHEAP, count, h, h // TRUNCATION) for h in lengths}
    settings = {"optimizer": CHEAP, "problems": count, "truncation": TRUNCATION}
    found = contest(contestants, options.repetitions, unit=UNIT, settings=settings)
    case = {"optimizer": CHEAP, "estimator": "truncated order 2", "task": "quadratic"}
    questions = [{**case, "problems": count, "truncation": TRUNCATION, "horizon": h} for h in lengths]
    peaks = fresh.peaks(questions, options.data, options.threads, options.repetitions)
    for length, answer in zip(lengths, peaks, strict=True):
        found.entries.append(
            entry(f"horizon, {length:,}, memory", answer["mib"], unit="MiB", better="lower", settings=settings)
        )
    return found


def processes(options: Options) -> Found:
    """The same batch shared out over processes, each with the run's threads; the clock begins after the start-up."""
    found = Found()
    wanted: list[tuple[str, str | bool]] = [("quadratic", False), ("mnist", False), ("mnist", "step")]
    for task, mode in wanted[:1] if options.quick else wanted:
        problems, truncation, outer_steps = (256, TRUNCATION, 42) if task == "quadratic" else (4, 50, 16)
        question = {
            "task": task, "mode": mode, "problems": options.pick(problems, 4), "truncation": truncation,
            "horizon": 100, "outer_steps": options.pick(outer_steps, 4), "skip": options.pick(4, 2),
            "threads": options.threads,
        }  # fmt: skip

        def measure(count: int, question: dict[str, Any] = question) -> float:
            asked = {**question, "data": str(options.data), "devices": count}
            return fresh.ask("probe_processes", asked, threads=options.threads)

        what = f"{task}, compile={str(mode).lower()}"
        contestants = {f"processes, {n}, {what}": functools.partial(measure, n) for n in (1, 2)}
        one = next(iter(contestants))
        repetitions = options.pick(options.repetitions, 1)
        found.add(contest(contestants, repetitions, unit=UNIT, settings=question, references=(one,), warm_up=False))
    return found
