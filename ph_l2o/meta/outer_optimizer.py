"""How the learned optimizer itself is updated: outer optimizers and schedules by name, or of one's own."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

MakeOptimizer = Callable[..., Optimizer]  # from parameters and `lr`
MakeSchedule = Callable[[Optimizer], Any]  # to one of torch.optim.lr_scheduler, which steps with each outer step

OUTER_OPTIMIZERS: dict[str, MakeOptimizer] = {
    "adam": functools.partial(Adam, fused=True),
    "adamw": functools.partial(AdamW, fused=True),
    "sgd": functools.partial(SGD, fused=True),
}
# From the share of the outer steps that are done, in [0, 1), to a factor of the learning rate.
OUTER_SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 + 0.5 * math.cos(math.pi * done),
    "constant": lambda done: 1.0,
}


def outer_schedule(
    outer: Optimizer, schedule: str | MakeSchedule, *, outer_steps: int, warmup_steps: int
) -> LRScheduler:
    """The schedule of an outer optimizer's learning rate.

    Args:
        outer: The outer optimizer.
        schedule: A name of `OUTER_SCHEDULES`, to which warm-up is added, or what makes one.
        outer_steps: Of the whole run.
        warmup_steps: Of linear warm-up.
    """
    if not isinstance(schedule, str):
        return schedule(outer)
    factor = OUTER_SCHEDULES[schedule]
    return LambdaLR(outer, lambda step: min(1.0, (step + 1) / (warmup_steps + 1)) * factor(step / outer_steps))
