"""Peak resident set of windows of meta-training, each case in a process that has only imported and read data.

The processes are forks of this one, which itself computes nothing, so that each has the same baseline: imports, data,
and what torch loads at the first use of autograd and vmap, which a window on a tiny problem has it do.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from _measure import REFUSALS

from ph_l2o.estimators import OBJECTIVES
from ph_l2o.inner import Window
from ph_l2o.keys import ProblemKeys
from ph_l2o.tasks import Quadratic, Task
from suite import cases, fresh

_UNIT = 2**20 if sys.platform == "darwin" else 2**10  # of ru_maxrss, in a MiB


def peak(case: dict[str, Any], task: Task) -> float:
    """MiB that an episode needs at most beyond the baseline, the problems included."""
    episode({**case, "problems": 1}, Quadratic(dim=1), 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    episode(case, task, case["truncation"])
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / _UNIT


def episode(case: dict[str, Any], task: Task, truncation: int) -> None:
    """All windows of an episode; one inner step for each window of the case where the truncation is 1."""
    horizon = case["horizon"] * truncation // case["truncation"]
    optimizer = cases.optimizer(case["optimizer"], case["task"])
    estimator = cases.estimators()[case["estimator"]]()
    count, objective = estimator.window_length(truncation, horizon), OBJECTIVES["mean_log_loss"]
    problem = task.sample(ProblemKeys(0, "train", 0, range(case["problems"])))
    phi = dict(optimizer.named_parameters())
    with torch.no_grad():
        carry = estimator.start(optimizer, problem)
    for first in range(0, horizon, count):
        carry = estimator(Window(optimizer, phi, problem, carry, first, count, objective)).carry


def forked(case: dict[str, Any], task: Task) -> dict[str, Any]:
    """The answer of a process of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer: dict[str, Any] = {"mib": peak(case, task)}
        except REFUSALS as error:
            answer = {"refused": str(error).partition("\n")[0]}
        except BaseException:
            answer = {"failed": traceback.format_exc().strip().splitlines()[-1]}
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    answer = json.loads(text) if text else {"failed": "the process was killed"}
    if "failed" in answer:
        raise SystemExit(f"{case}: {answer['failed']}")
    return answer


def main() -> None:
    """Answer with a list: for each case all repetitions in MiB, or why it was refused."""
    question = fresh.question()
    torch.set_num_threads(question["threads"])
    for lazy in ("numpy.random", "sympy"):  # which the first window would import, in each process anew
        importlib.import_module(lazy)
    tasks = {name: cases.task(name, Path(question["data"])) for name in {c["task"] for c in question["cases"]}}
    gc.collect()
    answers = []
    for case in question["cases"]:
        found = [forked(case, tasks[case["task"]])]
        while "mib" in found[0] and len(found) < question["repetitions"]:
            found.append(forked(case, tasks[case["task"]]))
        answers.append({"mib": [f["mib"] for f in found]} if "mib" in found[0] else found[0])
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
