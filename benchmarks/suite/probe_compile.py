"""Seconds that a fresh process spends on compiling: what its outer steps take beyond their median."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from ph_l2o.commands.numerics import set_up_torch
from ph_l2o.estimators import Truncated
from suite import cases, compile_modes, fresh
from suite.options import Options
from suite.outer_loop import learner, timed

OUTER_STEPS = 8


def main() -> None:
    """Answer with a number."""
    question = fresh.question()
    set_up_torch(question["threads"])
    case = compile_modes.case(question["task"], Options(data=Path(question["data"])))
    loop = dataclasses.replace(case.loop, outer_steps=OUTER_STEPS)
    optimizer = cases.optimizer("port_hamiltonian", case.task)
    steps = timed(learner(optimizer, case.made, Truncated(), loop, question["mode"])).steps()
    print(json.dumps(beyond_steady_state(steps)))


def beyond_steady_state(steps: Sequence[float]) -> float:
    """The sum beyond as many medians."""
    return sum(steps) - len(steps) * statistics.median(steps)


if __name__ == "__main__":
    main()
