"""Speed of meta-training over processes, in task-steps/s of all together."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch

from ph_l2o.commands.numerics import set_up_torch
from ph_l2o.estimators import Truncated
from suite import cases, fresh
from suite.outer_loop import Loop, learner, timed


def main() -> None:
    """Answer with a number, in the first process; the others run the same."""
    question = fresh.question()
    set_up_torch(question["threads"])
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    devices, skip = question["devices"], question["skip"]
    loop = Loop(question["problems"], (question["horizon"],), question["outer_steps"], question["truncation"])
    estimator = Truncated()
    torch.manual_seed(0)
    task = question["task"]
    made = cases.task(task, Path(question["data"]))
    module = learner(cases.optimizer("port_hamiltonian", task), made, estimator, loop, question["mode"])
    clock = timed(module, devices=devices, strategy="ddp" if devices > 1 else "auto")
    if module.trainer.is_global_zero:
        steps = loop.task_steps(estimator) - loop.task_steps(estimator, skip)
        print(json.dumps(steps / clock.seconds(skip)))


if __name__ == "__main__":
    main()
