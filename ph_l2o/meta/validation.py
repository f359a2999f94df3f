"""Validation: always the same fresh problems, so that checkpoints are compared in pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ph_l2o.estimators.objectives import EPS
from ph_l2o.inner import final_loss, run
from ph_l2o.keys import ProblemKeys
from ph_l2o.meta.score import relative_score
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.tasks import Task


def validate(
    optimizer: LearnedOptimizer,
    task: Task,
    *,
    num_problems: int,
    horizon: int,
    seed: int,
    tell_steps: bool = False,
    **where: Any,
) -> dict[str, Tensor]:
    """Run an optimizer on problems of the validation split, of all members of a mixture.

    Args:
        optimizer: The optimizer.
        task: The task. Each member of a mixture has its share of the problems, two at least; a mixture's score is the
            mean of its members' `relative_score`.
        num_problems: Problems, over all processes.
        horizon: Inner steps.
        seed: Of the run.
        tell_steps: Whether the optimizer is told the horizon.
        where: `rank`, `world_size`, `device` and `dtype`.

    Returns:
        Metrics by name, of this process's problems; `val/score` tells checkpoints apart, the lower the better.
    """
    members = task.members()
    mixed = len(members) > 1
    count = max(2, num_problems // len(members)) if mixed else num_problems
    metrics: dict[str, Tensor] = {}
    scores: list[Tensor] = []
    for name, member in members:
        found, score = _validate(optimizer, member, count, horizon, seed, mixed=mixed, tell_steps=tell_steps, **where)
        metrics |= {f"val/{name}/{key}": value for key, value in found.items()}
        scores.append(score)
    return metrics | {"val/score": torch.stack(scores).mean()}


def _validate(
    optimizer: LearnedOptimizer, task: Task, count: int, horizon: int, seed: int, *,
    mixed: bool, tell_steps: bool, rank: int, world_size: int, **where: Any,
) -> tuple[dict[str, Tensor], Tensor]:  # fmt: skip
    """Metrics and score of one task, or of one member of a mixture."""
    share = -(-count // world_size)
    keys = ProblemKeys(seed, "val", 0, range(rank * share, (rank + 1) * share))
    problem = task.sample(keys, **where)
    if tell_steps:
        problem.total_steps = torch.full_like(problem.params.flat[:, 0], horizon)
    carry, losses = run(optimizer, problem, horizon)
    carry = carry._replace(params=optimizer.readout(carry.params, carry.state))
    final = final_loss(problem, carry, losses[-1]).double()
    after = losses[1:].double()
    metrics = {
        "final_loss": final.mean(),
        "auc": after.mean(),
        "diverged_frac": (~torch.isfinite(losses).all(0)).double().mean(),
    }
    if mixed:
        return metrics, relative_score(losses)
    score = after.mean() if task.can_be_negative else (after + EPS).log().mean()
    return metrics, torch.where(torch.isfinite(score), score, torch.inf)
