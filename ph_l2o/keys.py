"""Counter-based random numbers: every draw is a pure function of its key.

A key is (seed, split, purpose, episode, problem index, step). Philox (Salmon et al. 2011, "Parallel random
numbers: as easy as 1, 2, 3") turns it into random words, so a run gives the same numbers after a resume, on
any device, and under any number of processes for the same global batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

import numpy as np

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
_WORDS_PER_BLOCK = 4  # a Philox-4x64 counter yields four 64-bit words


# Of a Philox that has given no words yet.
_AT_START: Any = np.random.Philox(0).state


class Purpose(IntEnum):
    """What a draw is for. The numbers are part of the random streams: never change them."""

    PROBLEM = 1
    BATCH = 2
    NOISE = 3
    RESCALE = 4
    HORIZON = 5
    MODULE = 6
    FINAL_BATCH = 7
    BOOTSTRAP = 8
    PERTURBATION = 9
    MIXTURE = 10
    HIDE_LOSS = 11
    TRAINING_SET = 12
    LABEL_NOISE = 13


@dataclass(frozen=True)
class ProblemKeys:
    """The keys of a batch of problems.

    Args:
        seed: The run's seed, >= 0.
        split: Which split of the task the problems come from; splits never share a problem.
        episode: Number of the episode, >= 0; each gives fresh problems.
        indices: Global indices of the problems in the episode's batch. A process of a distributed run holds
            a sub-range, and gets the same problems as a single process would. An index can occur
            several times.
    """

    seed: int
    split: Split
    episode: int
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def _bit_generator(
        self, purpose: Purpose, index: int, block: int = 0, step: int = 0, *, into: np.random.Philox | None = None
    ) -> np.random.Philox:
        """Philox at the place of a key: a new one, or `into`, which is ten times faster to move than to make."""
        made = np.random.Philox(0) if into is None else into
        key = np.array([self.seed, 16 * int(purpose) + SPLITS.index(self.split)], dtype=np.uint64)
        counter = np.array([block, step, index, self.episode], dtype=np.uint64)
        made.state = _AT_START | {"state": {"counter": counter, "key": key}}
        return made

    def generator(self, purpose: Purpose, index: int) -> np.random.Generator:
        """A generator for the draws of problem `index` that do not depend on the inner step."""
        return np.random.Generator(self._bit_generator(purpose, index))

    def episode_generator(self, purpose: Purpose) -> np.random.Generator:
        """A generator for what all problems of the episode share, such as its horizon."""
        return self.generator(purpose, 2**32 - 1)

    def torch_seed(self, purpose: Purpose, index: int, step: int = 0) -> int:
        """A seed for torch's own generators, where no draw of ours can take their place."""
        return int(self._bit_generator(purpose, index, step).random_raw()) >> 1

    def words(self, purpose: Purpose, first: int, count: int, per_step: int) -> np.ndarray:
        """Random 64-bit words of a window of inner steps, all problems at once.

        Args:
            purpose: What the draws are for.
            first: First inner step of the window.
            count: Number of inner steps.
            per_step: Words needed by one problem in one step.

        Returns:
            uint64 array of shape `(count, len(self), per_step)`; a step's words do not depend on the window.
        """
        blocks = -(-per_step // _WORDS_PER_BLOCK)
        out = np.empty((count, len(self), blocks * _WORDS_PER_BLOCK), dtype=np.uint64)
        bits = np.random.Philox(0)
        for row, index in enumerate(self.indices):
            self._bit_generator(purpose, index, first * blocks, into=bits)
            out[:, row] = bits.random_raw(count * blocks * _WORDS_PER_BLOCK).reshape(count, -1)
        return out[..., :per_step]

    def normals(self, purpose: Purpose, step: int, count: int) -> np.ndarray:
        """Standard normal numbers of each problem for one inner step, `(len(self), count)`.

        At step 0 they are the first ones of `generator`.

        For many numbers at once; `words` is for windows of steps with few numbers each. No purpose may use both.
        """
        out = np.empty((len(self), count))
        bits = np.random.Philox(0)
        normals = np.random.Generator(bits)
        for row, index in enumerate(self.indices):
            self._bit_generator(purpose, index, step=step, into=bits)
            normals.standard_normal(out=out[row])
        return out


def integers(words: np.ndarray, high: int) -> np.ndarray:
    """Uniform integers in [0, high) from random words, by multiply-and-shift (bias below high / 2**32)."""
    return ((words >> np.uint64(32)) * np.uint64(high) >> np.uint64(32)).astype(np.int64)


def uniforms(words: np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1), one for each word."""
    return (words >> np.uint64(11)) * 2.0**-53


def normals(words: np.ndarray) -> np.ndarray:
    """Standard normal numbers, one for each word of an even last axis, by Box and Muller (1958)."""
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log(uniform[..., 0::2])), 2 * np.pi * uniform[..., 1::2]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
