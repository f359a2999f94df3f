"""A mixture of tasks: a learned optimizer that is to be general sees many families."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ph_l2o.checks import did_you_mean
from ph_l2o.keys import ProblemKeys, Purpose
from ph_l2o.tasks.task import Problem, Task


class Mixture(Task):
    """Each episode's problems come from one member, so that a batch shares its architecture.

    Which member that is follows from seed, split and episode alone: all processes of a run, and all parts of a batch,
    take the same one. M episodes in a row, from a multiple of M on, are a stratified draw: members of equal weight
    come once each, in random order.

    A validation covers all members (`Task.members`). A comparison of optimizers needs one task: a member.

    Args:
        tasks: The members by name, or a list of tasks with names that differ.
        weights: Of the members named in it, > 0; the others have weight 1. Only the proportions count.
        name: Name in tables and folders.

    Raises:
        ValueError: If there is no member, a name or weight does not fit, or a member's losses can be negative: the
            logarithms of relative losses, by which a mixture is scored, make no sense for it.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task] | Sequence[Task],
        *,
        weights: Mapping[str, float] | None = None,
        name: str = "mixture",
    ):
        named = [*tasks.items()] if isinstance(tasks, Mapping) else [(task.name, task) for task in tasks]
        self.tasks = dict(named)
        if not named or len(self.tasks) < len(named):
            names = ", ".join(name for name, _ in named)
            raise ValueError(f"task.tasks=[{names}]: must be tasks, at least one, by names that differ")
        for member, task in named:
            if not isinstance(task, Task):
                raise ValueError(f"task.tasks.{member}={type(task).__name__}: must be a task")
            if task.can_be_negative:
                raise ValueError(f"task.tasks.{member}={type(task).__name__}: must have losses >= 0")
        for member, weight in (weights or {}).items():
            if member not in self.tasks:
                hint = did_you_mean(member, self.tasks)
                raise ValueError(f"task.weights.{member}: must be the name of a member{hint}")
            if not 0 < weight < math.inf:
                raise ValueError(f"task.weights.{member}={weight}: must be > 0 and finite")
        self.weights = {member: float((weights or {}).get(member, 1.0)) for member in self.tasks}
        self.name = name
        self.num_architectures = sum(task.num_architectures for task in self.tasks.values())

    def choose(self, keys: ProblemKeys) -> str:
        """Name of the member that these problems come from."""
        count = len(self.tasks)
        block, place = divmod(keys.episode, count)
        generator = dataclasses.replace(keys, episode=block).episode_generator(Purpose.MIXTURE)
        stratum, offset = generator.permutation(count)[place], generator.random()
        edges = np.cumsum(list(self.weights.values()))
        number = np.searchsorted(edges, (stratum + offset) / count * edges[-1], side="right")
        return list(self.tasks)[min(int(number), count - 1)]

    def sample(
        self, keys: ProblemKeys, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Problem:
        """Draw problems of the episode's member; see `Task.sample`."""
        return self.tasks[self.choose(keys)].sample(keys, device=device, dtype=dtype)

    def members(self) -> list[tuple[str, Task]]:
        """Names and tasks of the members; members of a member count by themselves."""
        found: list[tuple[str, Task]] = []
        for name, task in self.tasks.items():
            parts = task.members()
            found += [(name, task)] if len(parts) == 1 else [(f"{name}_{part}", t) for part, t in parts]
        return found

    def prepare(self) -> None:
        """Prepare all members."""
        for task in self.tasks.values():
            task.prepare()

    def spec(self) -> dict[str, Any]:
        """What defines the distribution: the members' specs and weights."""
        return super().spec() | {"tasks": {name: task.spec() for name, task in self.tasks.items()}}
