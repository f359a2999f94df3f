"""What is optimised: a `Task` is a distribution of problems, a `Problem` a batch of draws from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ph_l2o.keys import ProblemKeys, Purpose
from ph_l2o.params import Params

Buffers = Mapping[str, Tensor]

_SAMPLE = 20  # batches


class Problem(ABC):
    """B optimisation problems, all advanced at once.

    Attributes:
        keys: Where the random draws of these problems come from.
        params: Start θ₀, tensors of shape `(B, *shape)`.
        buffers: What a step changes besides the parameters (BatchNorm's running statistics), tensors of shape
            `(B, *shape)`; empty for most.
        stochastic: Whether the loss depends on a mini-batch or noise.
        hidden: Problems whose loss the optimizer never sees, booleans `(B,)`; None: it sees all.
        total_steps: Steps of the episode, as the optimizer is told, `(B,)`; None: it is not.
    """

    keys: ProblemKeys
    params: Params
    buffers: Buffers = MappingProxyType({})
    stochastic: bool = False
    hidden: Tensor | None = None
    total_steps: Tensor | None = None

    @property
    def num_problems(self) -> int:
        """Number of problems, B."""
        return self.params.num_problems

    def batches(self, first: int, count: int) -> Iterator[Any]:
        """What is drawn for the inner steps `first … first + count - 1`, one item a step.

        The draws of a step depend on its number alone, not on the window in which it is asked for.
        """
        del first
        return iter([None] * count)

    def final_batches(self, count: int) -> Iterator[Any]:
        """Fresh draws, not among those of any inner step, for the loss at the end of an episode."""
        return self.batches(0, count)

    def training_sample(self, most: int) -> Iterator[tuple[Any, int]]:
        """On what the training loss is measured, the same at every call: batches, with their numbers of examples.

        Args:
            most: Examples in all, >= 1; where a problem has no more, they are the whole training set. Where examples
                cannot be counted, the batches are those of `final_batches`.
        """
        del most
        return ((batch, 1) for batch in (self.final_batches(_SAMPLE) if self.stochastic else self.batches(0, 1)))

    @abstractmethod
    def loss(self, params: Params, buffers: Buffers, batch: Any) -> tuple[Tensor, Buffers]:
        """Loss of every problem at its parameters.

        Args:
            params: Tensors of shape `(B, *shape)`.
            buffers: Carry of the last step, as `self.buffers`.
            batch: An item of `batches`.

        Returns:
            Losses of shape `(B,)`, twice differentiable in `params`, and the next buffers.
        """

    def test_metrics(self, params: Params, buffers: Buffers) -> dict[str, Tensor]:
        """Metrics on data that no problem is trained on, each of shape `(B,)`; empty where there is none."""
        del params, buffers
        return {}


class StochasticProblem(Problem):
    """Problems whose loss depends on what is drawn for the step, such as a mini-batch; a subclass says what in `draw`.

    Attributes:
        purpose: Of the draws of the inner steps; those at the end of an episode have a purpose of their own.
    """

    stochastic = True
    purpose: ClassVar[Purpose] = Purpose.BATCH

    @abstractmethod
    def draw(self, purpose: Purpose, first: int, count: int) -> Iterator[Any]:
        """One item for each of the steps `first … first + count - 1`, from keys of this purpose."""

    def batches(self, first: int, count: int) -> Iterator[Any]:
        return self.draw(self.purpose, first, count)

    def final_batches(self, count: int) -> Iterator[Any]:
        return self.draw(Purpose.FINAL_BATCH, 0, count)


def stacked(
    keys: ProblemKeys,
    draw: Callable[[np.random.Generator], Sequence[np.ndarray]],
    *,
    device: torch.device | str,
    dtype: torch.dtype,
) -> list[Tensor]:
    """The arrays that are drawn for each problem as tensors `(B, …)`, floating-point ones of type `dtype`."""
    drawn = {i: draw(keys.generator(Purpose.PROBLEM, i)) for i in set(keys.indices)}
    tensors = [torch.from_numpy(np.stack(part)) for part in zip(*(drawn[i] for i in keys.indices), strict=True)]
    return [t.to(device=device, dtype=dtype if t.is_floating_point() else None) for t in tensors]


class Task:
    """A distribution of problems.

    A subclass names its class of problems, which is made from (task, keys, device=…, dtype=…), or has a `sample` of
    its own.

    Attributes:
        name: Short name, for tables and folders.
        problem_type: The class of its problems.
        can_be_negative: Whether losses can fall below zero; geometric means and log objectives then make no sense.
        num_architectures: How many sets of tensor shapes its problems have. With `compile=auto` each of a few has an
            inner step compiled for it, and many share a compiled update.
    """

    name: str
    problem_type: ClassVar[Callable[..., Problem]]
    num_architectures: int = 1
    can_be_negative: ClassVar[bool] = False

    def sample(
        self, keys: ProblemKeys, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Problem:
        """Draw `len(keys)` problems; the same keys give the same problems on every device."""
        return self.problem_type(self, keys, device=device, dtype=dtype)

    def members(self) -> list[tuple[str, Task]]:
        """Names and tasks that a validation covers: the task itself, or the members of a mixture."""
        return [(self.name, self)]

    def prepare(self) -> None:
        """Fetch and verify what the task needs, before any work starts. Called once for each process."""

    def spec(self) -> dict[str, Any]:
        """What defines the distribution, as plain values: the class and its public attributes."""
        values = {k: v for k, v in vars(self).items() if not k.startswith("_")}
        return {"class": f"{type(self).__module__}.{type(self).__qualname__}", **values}
