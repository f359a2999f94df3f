"""Modes of compilation: speed of the outer loop in each, beside a reference script; seconds that compiling takes."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace

from _measure import Found, contest, entry, say

from ph_l2o.estimators import ES, PES, Estimator, Truncated
from ph_l2o.tasks import Task
from suite import cases, fresh
from suite.options import Options
from suite.outer_loop import HAS_COMPILATION, Loop, Ours, imported, reference

MODES: tuple[str | bool, ...] = (False, "update", "step") if HAS_COMPILATION else (False,)
STRATEGIES: dict[str, Callable[[], Estimator]] = {"es": ES, "pes": PES}
OTHERS = {"lstm": 2, "hnn": 4}  # on MNIST, with the number of outer steps
ACTIVATIONS = {"quadratic": ("sigmoid",), "mnist": ("sigmoid", "relu", "tanh")}
LOOPS = {
    "quadratic": Loop(64, (20, 60, 100, 100, 200), 60, 20),
    "mnist": Loop(4, (100,), 6, 50, rescale=0.7),
}
QUICK = {"quadratic": Loop(2, (4,), 2, 2), "mnist": Loop(2, (4,), 2, 2, rescale=0.7)}


@dataclass(frozen=True)
class Case:
    """`port_hamiltonian` on a task."""

    task: str
    made: Task
    loop: Loop

    def ours(
        self, mode: str | bool, *, optimizer: str = "port_hamiltonian", outer_steps: int | None = None,
        estimator: Callable[[], Estimator] = Truncated,
    ) -> Ours:  # fmt: skip
        """Our outer loop in a mode."""
        make = functools.partial(cases.optimizer, optimizer, self.task)
        loop = replace(self.loop, outer_steps=outer_steps or self.loop.outer_steps)
        return Ours(make, self.made, estimator, loop, mode=mode)


def case(task: str, options: Options) -> Case:
    """A case with its task's data read."""
    return Case(task, cases.task(task, options.data, ACTIVATIONS[task]), (QUICK if options.quick else LOOPS)[task])


def measured(options: Options) -> Found:
    """Speed in turns with the reference script; then the time that compiling takes, in fresh processes."""
    found = Found()
    script = None if options.reference is None else imported(options.reference)
    modes = MODES[:1] if options.quick else MODES  # compiling takes longer than all of a quick run
    for task in LOOPS:
        say(f" port_hamiltonian, {task}")
        here = case(task, options)
        contestants: dict[str, Callable[[], float]] = {_name(task, mode): here.ours(mode) for mode in modes}
        if len(modes) > 1:
            for name, make in STRATEGIES.items():
                contestants[f"{name}, {_name(task, 'step')}"] = here.ours("step", estimator=make)
            for name, count in OTHERS.items() if task == "mnist" else ():
                for mode in (False, "step"):
                    contestants[f"{name}, {_name(task, mode)}"] = here.ours(mode, optimizer=name, outer_steps=count)
        references = []
        if script is not None:
            references = [f"{task}, {options.reference.name}"] if options.reference else []
            contestants[references[0]] = reference(script, here.made, ACTIVATIONS[task], here.loop)
        settings = {**vars(here.loop), "activations": ACTIVATIONS[task]}
        found.add(
            contest(contestants, options.repetitions, unit="task-steps/s", references=references, settings=settings)
        )
        if len(modes) > 1:
            found.add(compilation(task, "step", options))
    return found


def compilation(task: str, mode: str | bool, options: Options) -> Found:
    """Seconds beyond the steady state in two fresh processes: with an empty cache, and with what the first left."""
    found = Found()
    question = {"task": task, "mode": mode, "data": str(options.data), "threads": options.threads}
    with tempfile.TemporaryDirectory() as folder:
        for when in ("empty cache", "from the cache"):
            name = f"{_name(task, mode)}, seconds of compiling, {when}"
            say(f"  {name}")
            seconds = fresh.ask("probe_compile", question, threads=options.threads, TORCHINDUCTOR_CACHE_DIR=folder)
            found.entries.append(entry(name, [seconds], unit="s", better="lower"))
    return found


def _name(task: str, mode: str | bool) -> str:
    return f"{task}, compile={str(mode).lower()}"
