"""Tuning a baseline: all learning rates on all problems as one batch, beside each run by itself.

Both do what `ph_l2o.evaluation.tuning` does for a grid of learning rates. Of the single runs only some are made, every
learning rate on the first problems; both are given as a speed, so nothing is extrapolated.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from _measure import Found, contest

from ph_l2o.evaluation.runner import run_episode, tiled
from ph_l2o.keys import ProblemKeys
from ph_l2o.optimizers import Adam
from ph_l2o.tasks import Quadratic
from suite.options import Options

RATES = tuple(10 ** (0.5 * k - 3) for k in range(7))


def measured(options: Options) -> Found:
    """The speed of both, and their ratio."""
    horizon, problems, alone = options.pick(100, 4), options.pick(64, 4), options.pick(4, 1)

    def at_once() -> float:
        return speed([(tiled(problems, len(RATES)), rates(problems))], horizon)

    def one_by_one() -> float:
        return speed([((k,), torch.tensor([rate])) for rate in RATES for k in range(alone)], horizon)

    single = f"one by one ({len(RATES) * alone} of {len(RATES) * problems} runs)"
    contestants = {f"one batch of {len(RATES) * problems}": at_once, single: one_by_one}
    settings = {"optimizer": "adam", "learning_rates": RATES, "problems": problems, "horizon": horizon}
    return contest(contestants, options.repetitions, unit="task-steps/s", references=(single,), settings=settings)


def rates(problems: int) -> torch.Tensor:
    """A learning rate for each row of the batch."""
    return torch.tensor(RATES).repeat_interleave(problems)


def speed(batches: Sequence[tuple[Sequence[int], torch.Tensor]], horizon: int) -> float:
    """Task-steps/s of episodes, drawing of problems included."""
    task, optimizer, done = Quadratic(), Adam().eval(), 0
    began = time.perf_counter()
    for indices, values in batches:
        problem = task.sample(ProblemKeys(0, "val", 0, indices))
        run_episode(optimizer.with_hyperparameters(lr=values), problem, horizon)
        done += horizon * len(indices)
    return done / (time.perf_counter() - began)
