"""Runs whose training loss is followed on a fixed sample, and what is measured where they are stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ph_l2o.evaluation.estimates import Array
from ph_l2o.evaluation.runner import chunk_size, prepared, read_out
from ph_l2o.evaluation.sharpness import sharpness
from ph_l2o.inner import Carry, run, start
from ph_l2o.keys import ProblemKeys, Split
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.tasks.module import ModuleProblem
from ph_l2o.tasks.task import Problem, Task

Measures = dict[str, Array]  # by name, `(P,)`; nan where there is none

NAMES = ("train_loss", "test_loss", "accuracy", "gap", "sharpness", "sharpness_converged")


@dataclass(frozen=True)
class Plan:
    """What is the same for all optimizers; see `measure_generalisation`."""

    task: Task
    horizon: int
    num_problems: int
    seed: int
    split: Split
    every: int
    sample: int
    sharpness_sample: int
    sharpness_iterations: int
    device: torch.device | str
    dtype: torch.dtype
    chunk: int | None

    @property
    def steps(self) -> Array:
        """Steps at which the training loss is measured, from 0 to the horizon."""
        return np.array([*range(0, self.horizon, self.every), self.horizon])

    def chunks(self) -> list[range]:
        """Problems that run at once."""
        size = chunk_size(self.task, self.device) if self.chunk is None else self.chunk
        return [range(k, min(k + size, self.num_problems)) for k in range(0, self.num_problems, size)]

    def problem(self, part: range) -> Problem:
        """Some of the problems."""
        keys = ProblemKeys(self.seed, self.split, 0, part)
        return self.task.sample(keys, device=self.device, dtype=self.dtype)


@dataclass(frozen=True, eq=False)
class Trace:
    """A run to the horizon.

    Attributes:
        training: Training losses at the plan's steps, `(E, P)`; +∞ where they are not finite.
        at_end: What is measured at the horizon.
    """

    training: Array
    at_end: Measures

    @property
    def diverged(self) -> np.ndarray:
        """Where the training loss at the end is not finite, or above that at the start, bool `(P,)`."""
        return ~np.isfinite(self.training[-1]) | (self.training[-1] > self.training[0])

    def first_at(self, levels: Array) -> np.ndarray:
        """Index of the first of the plan's steps with a training loss at or below the problem's level; -1: none."""
        reached = self.training <= levels
        return np.where(reached.any(0), reached.argmax(0), -1)


@torch.no_grad()
def follow(optimizer: LearnedOptimizer, plan: Plan) -> Trace:
    """Run to the horizon."""
    optimizer = prepared(optimizer, plan.device, plan.dtype)
    curves, ends = list[Array](), list[Measures]()
    for part in plan.chunks():
        problem = plan.problem(part)
        training, carry = list[Array](), start(optimizer, problem)
        for step, following in zip(plan.steps, [*plan.steps[1:], None], strict=True):
            training.append(_losses(_training_loss(_judged(problem), read_out(optimizer, problem, carry), plan.sample)))
            if following is not None:
                carry, _ = run(optimizer, problem, int(following - step), carry=carry, first=int(step))
        curves.append(np.stack(training))
        ends.append(_measured(problem, read_out(optimizer, problem, carry), plan))
    return Trace(np.concatenate(curves, 1), _joined(ends))


@torch.no_grad()
def stopped(optimizer: LearnedOptimizer, plan: Plan, stops: Sequence[np.ndarray]) -> list[Measures]:
    """Run again, and measure each problem where it is stopped.

    Args:
        optimizer: The optimizer.
        plan: As it was followed.
        stops: Of each measurement, an index into the plan's steps for each problem, `(P,)`; -1: none, nan is measured.
    """
    optimizer = prepared(optimizer, plan.device, plan.dtype)
    found: list[list[Measures]] = [[] for _ in stops]
    for part in plan.chunks():
        problem = plan.problem(part)
        indices = [stop[part.start : part.stop] for stop in stops]
        carry = start(optimizer, problem)
        kept = [carry] * len(stops)
        for e in range(max(int(index.max()) for index in indices) + 1):
            if e:
                first = int(plan.steps[e - 1])
                carry, _ = run(optimizer, problem, int(plan.steps[e]) - first, carry=carry, first=first)
            if any((index == e).any() for index in indices):
                now = read_out(optimizer, problem, carry)
                kept = [_replaced(k, now, index == e) for k, index in zip(kept, indices, strict=True)]
        for parts, one, index in zip(found, kept, indices, strict=True):
            measures = _measured(problem, one, plan) if (index >= 0).any() else dict.fromkeys(NAMES, np.nan)
            parts.append({name: np.where(index < 0, np.nan, x) for name, x in measures.items()})
    return [_joined(parts) for parts in found]


def _replaced(kept: Carry, now: Carry, where: np.ndarray) -> Carry:
    mask = torch.from_numpy(where).to(now.params.flat.device)

    def chosen(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(mask.view(-1, *[1] * (new.dim() - 1)), new, old)

    buffers = {name: chosen(x, kept.buffers[name]) for name, x in now.buffers.items()}
    return Carry(now.params.like(chosen(now.params.flat, kept.params.flat)), kept.state, buffers)


def _judged(problem: Problem) -> Problem:
    """In evaluation mode, as test metrics are measured."""
    return problem.evaluating() if isinstance(problem, ModuleProblem) else problem


def _training_loss(problem: Problem, carry: Carry, sample: int) -> Tensor:
    total, examples = torch.zeros_like(carry.params.flat[:, 0]), 0
    for batch, count in problem.training_sample(sample):
        total += count * problem.loss(carry.params, carry.buffers, batch)[0]
        examples += count
    return total / examples


def _measured(problem: Problem, carry: Carry, plan: Plan) -> Measures:
    train = _losses(_training_loss(_judged(problem), carry, plan.sample))
    metrics = problem.test_metrics(carry.params, carry.buffers)
    if "test_loss" not in metrics:
        raise ValueError(f"task={plan.task.name}: has no held-out loss; choose one that has, such as mnist")
    test = _losses(metrics["test_loss"])
    with np.errstate(invalid="ignore"):
        gap = np.where(np.isfinite(train) & np.isfinite(test), test - train, np.inf)
    found = dict.fromkeys(NAMES, np.full(len(train), np.nan)) | {"train_loss": train, "test_loss": test, "gap": gap}
    if "accuracy" in metrics:
        found["accuracy"] = metrics["accuracy"].cpu().double().numpy()
    if plan.sharpness_sample:
        batches = _judged(problem).training_sample(plan.sharpness_sample)
        sharp = sharpness(
            _judged(problem), carry.params, carry.buffers, batches,
            max_iterations=plan.sharpness_iterations, seed=plan.seed,
        )  # fmt: skip
        found |= {"sharpness": sharp.largest, "sharpness_converged": sharp.converged.astype(np.float64)}
    return found


def _joined(parts: Sequence[Measures]) -> Measures:
    return {name: np.concatenate([part[name] for part in parts]) for name in NAMES}


def _losses(values: Tensor) -> Array:
    return values.nan_to_num(torch.inf, torch.inf, torch.inf).cpu().double().numpy()
