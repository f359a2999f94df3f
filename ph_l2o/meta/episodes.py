"""Episodes: which problems meta-training runs on, and what one truncation window leaves to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ph_l2o.errors import CheckpointError
from ph_l2o.inner import Carry, start
from ph_l2o.keys import ProblemKeys, Purpose
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer, map_state
from ph_l2o.tasks import Problem, Task, rescaled


@dataclass
class Episode:
    """A batch of problems, how far it is, and its carry.

    Attributes:
        number: Number of the episode, from 0.
        horizon: Inner steps of the episode.
        age: Inner steps done.
        problem: The optimizees.
        carry: What the last window left.
    """

    number: int
    horizon: int
    age: int
    problem: Problem
    carry: Carry

    @property
    def is_over(self) -> bool:
        """Whether the episode has reached its horizon."""
        return self.age >= self.horizon


class EpisodeSource:
    """Makes the episodes of meta-training from counter-based keys.

    Args:
        task: The distribution of problems.
        seed: The run's seed.
        num_problems: Problems of a batch, over all processes.
        horizons: Inner steps of the episodes, taken in turn.
        rescale: Random re-scaling of the parameters (Lv et al. 2017): log scale ~ U(-rescale, rescale); 0: none.
        hide_loss: Share of the problems whose loss the optimizer never sees.
        tell_steps: Whether the optimizer is told the horizon of each episode.
        curriculum: Share of the training in which the longest horizon grows from the first to the last one.
        start: Makes the carry at an episode's start, as `Estimator.start`.
    """

    def __init__(
        self,
        task: Task,
        *,
        seed: int,
        num_problems: int,
        horizons: Sequence[int],
        rescale: float = 0.0,
        hide_loss: float = 0.0,
        tell_steps: bool = False,
        curriculum: float = 0.0,
        start: Callable[[LearnedOptimizer, Problem], Carry] = start,
    ):
        self.task, self.seed, self.num_problems = task, seed, num_problems
        self.horizons, self.rescale, self.start = tuple(horizons), rescale, start
        self.hide_loss, self.tell_steps, self.curriculum = hide_loss, tell_steps, curriculum

    def problem(self, number: int, *, rank: int, world_size: int, device: torch.device, dtype: torch.dtype) -> Problem:
        """The share of process `rank` in the problems of an episode."""
        share = self.num_problems // world_size
        keys = ProblemKeys(self.seed, "train", number, range(rank * share, (rank + 1) * share))
        problem = self.task.sample(keys, device=device, dtype=dtype)
        if self.rescale > 0:
            problem = rescaled(problem, self.rescale)
        if self.hide_loss > 0:
            draws = [keys.generator(Purpose.HIDE_LOSS, i).random() < self.hide_loss for i in keys.indices]
            problem.hidden = torch.tensor(draws, device=device)
        return problem

    def horizon(self, number: int, progress: float) -> int:
        """Inner steps of an episode that begins after the share `progress` of the training."""
        share = min(progress / self.curriculum, 1.0) if self.curriculum > 0 else 1.0
        allowed = 1 + round(share * (len(self.horizons) - 1))
        return self.horizons[number % allowed]

    def begin(self, number: int, optimizer: LearnedOptimizer, horizon: int, **where: Any) -> Episode:
        """Episode `number` at its start."""
        problem = self.problem(number, **where)
        if self.tell_steps:
            problem.total_steps = torch.full_like(problem.params.flat[:, 0], horizon)
        with torch.no_grad():
            carry = self.start(optimizer, problem)
        return Episode(number, horizon, 0, problem, carry)

    def restore(
        self, saved: dict[str, Any], optimizer: LearnedOptimizer, *, rank: int, world_size: int, **where: Any
    ) -> Episode:
        """The episode that `save` wrote, on this process's share of its problems.

        Raises:
            CheckpointError: If it is of other problems, or of another optimizer's state.
        """
        episode = self.begin(saved["number"], optimizer, saved["horizon"], rank=rank, world_size=world_size, **where)
        share = episode.problem.num_problems
        rows = slice(rank * share, (rank + 1) * share)
        leaves = iter(saved["state"])

        def place(tensor: Tensor, like: Tensor) -> Tensor:
            shape = (world_size * share, *like.shape[1:])
            if tensor.shape != shape or tensor.is_floating_point() != like.is_floating_point():
                raise CheckpointError(
                    f"episode {episode.number} has a tensor of shape {tuple(tensor.shape)}, {tensor.dtype}, expected "
                    f"{shape}, {like.dtype}; resume with the task, optimizer and meta.num_problems of the run"
                )
            return tensor[rows].to(device=like.device, dtype=like.dtype)

        carry = episode.carry
        state = map_state(lambda like: place(next(leaves, torch.empty(0)), like), carry.state)
        params = carry.params.like(place(saved["params"], carry.params.flat))
        buffers = {n: place(saved["buffers"].get(n, torch.empty(0)), like) for n, like in carry.buffers.items()}
        episode.carry, episode.age = Carry(params, state, buffers), saved["age"]
        return episode


def save(episode: Episode) -> dict[str, Any]:
    """The episode as plain numbers and tensors of this process; the problems come back from their keys."""
    leaves: list[Tensor] = []
    map_state(lambda x: leaves.append(x.detach()) or x, episode.carry.state)
    return {
        "number": episode.number,
        "horizon": episode.horizon,
        "age": episode.age,
        "params": episode.carry.params.flat.detach(),
        "state": leaves,
        "buffers": {name: b.detach() for name, b in episode.carry.buffers.items()},
    }
