"""Episodes that are under way at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from ph_l2o.estimators.exchange import num_processes
from ph_l2o.meta.episodes import Episode, EpisodeSource, save
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer


class EpisodeRotation:
    """Episodes that are under way at once; windows are taken from them in turn.

    Args:
        source: Makes the episodes.
        count: How many are under way, >= 1.

    Attributes:
        windows: Windows so far.
    """

    def __init__(self, source: EpisodeSource, count: int):
        self.source = source
        self._episodes: list[Episode | None] = [None] * count
        self._saved: list[dict[str, Any] | None] = [None] * count
        self._turn = self._next_number = self.windows = 0
        self._before: tuple[Any, ...] = ()

    @property
    def current(self) -> Episode | None:
        """The episode of the last window."""
        return self._episodes[self._turn]

    def take_turn(self, optimizer: LearnedOptimizer, done: float, **where: Any) -> Episode:
        """The episode of the next window.

        Args:
            optimizer: The learned optimizer.
            done: Share of the training that is done, in [0, 1].
            where: As for `EpisodeSource.begin`.
        """
        turn = self._turn = self.windows % len(self._episodes)
        self.windows += 1
        saved, self._saved[turn] = self._saved[turn], None
        episode = self._episodes[turn] if saved is None else self.source.restore(saved, optimizer, **where)
        if episode is None or episode.is_over:
            number, self._next_number = self._next_number, self._next_number + 1
            episode = self.source.begin(number, optimizer, self.source.horizon(number, done), **where)
        self._episodes[turn] = episode
        return episode

    def remember(self) -> None:
        """Keep how things stand, for `take_back`."""
        episodes = [e and replace(e) for e in self._episodes]
        self._before = episodes, list(self._saved), self._turn, self._next_number, self.windows

    def take_back(self) -> None:
        """Undo all that happened since `remember`."""
        self._episodes, self._saved, self._turn, self._next_number, self.windows = self._before

    def restart(self) -> None:
        """Let a new episode take the place of the last window's."""
        self._episodes[self._turn] = None

    def state(self) -> dict[str, Any]:
        """What a resume needs: plain numbers and tensors of the problems of all processes."""
        under_way = [None if e is None or e.is_over else _gathered(save(e)) for e in self._episodes]
        # What the run was resumed with stays as it is until the episode has its turn.
        episodes = [e if s is None else s for e, s in zip(under_way, self._saved, strict=True)]
        return {"episodes": episodes, "windows": self.windows, "next_episode": self._next_number}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned.

        Raises:
            ValueError: If another number of episodes was under way.
        """
        saved, count = state["episodes"], len(self._episodes)
        if len(saved) != count:
            raise ValueError(f"meta.episodes={count}: the checkpoint has {len(saved)} of them")
        self._saved, self._episodes = list(saved), [None] * count
        self.windows, self._next_number = state["windows"], state["next_episode"]


def _gathered(saved: dict[str, Any]) -> dict[str, Any]:
    """An episode with the problems of all processes, on process 0, which writes the file."""
    if num_processes() == 1:
        return saved

    def join(x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(num_processes())] if dist.get_rank() == 0 else None
        dist.gather(x.contiguous(), parts)
        return x if parts is None else torch.cat(parts)

    return saved | {
        "params": join(saved["params"]),
        "state": [join(x) for x in saved["state"]],
        "buffers": {name: join(b) for name, b in saved["buffers"].items()},
    }
