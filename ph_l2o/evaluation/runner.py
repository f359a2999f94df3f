"""Run an optimizer on many problems, the same for every optimizer."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ph_l2o.checks import at_least
from ph_l2o.evaluation.estimates import Array
from ph_l2o.inner import Carry, final_loss, run
from ph_l2o.keys import SPLITS, ProblemKeys, Split
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.tasks.task import Problem, Task

Progress = Callable[[int, int], None]
LAST = 10  # losses in the mean over the end of an episode
TAIL = 0.1  # share of the steps over whose losses an optimizer is judged on a suite, and tuned
_RENEWALS = 50  # mini-batches, after which a running average of BatchNorm's usual momentum has forgotten the rest

# Coordinates B·N in a chunk. On a CPU, an optimizer's 10 to 30 buffers of this size stay within tens of MiB,
# near the caches, and a quadratic's chunk has enough problems that Python's share of a step is small
# (measured: flat from 2**15 on). A GPU needs larger chunks to be busy.
_COORDINATES = {"cpu": 2**17, "cuda": 2**22}


@dataclass(frozen=True, eq=False)
class Result:
    """What an optimizer reached on P problems.

    A number that is not finite is +∞; no problem is left out.

    Attributes:
        losses: loss_0 … loss_T of each problem, float64 of shape `(T + 1, P)`, on the CPU.
        final: Loss at the end, `(P,)`: loss_T, or for stochastic tasks the mean over 10 fresh batches.
        metrics: Metrics at the end on data that no problem is trained on, each `(P,)`.
        diverged: Where a loss is not finite, or the final loss is worse than the start's, bool `(P,)`.
        step_seconds: Wall-clock seconds of the inner loops (optimizer, gradient and mini-batches; neither
            drawing the problems nor the test metrics) over the number of task-steps, T·P.
    """

    losses: Array
    final: Array
    metrics: dict[str, Array]
    diverged: np.ndarray
    step_seconds: float

    @property
    def last10(self) -> Array:
        """Mean of loss_{T-9} … loss_T of each problem (of loss_1 … loss_T if T < 10), `(P,)`."""
        return self.losses[1:][-LAST:].mean(0)

    @property
    def all(self) -> Array:
        """Mean of loss_1 … loss_T of each problem, `(P,)`."""
        return self.losses[1:].mean(0)


def evaluate_optimizer(
    optimizer: LearnedOptimizer,
    task: Task,
    *,
    horizon: int,
    num_problems: int,
    seed: int,
    split: Split = "test",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    chunk: int | None = None,
    episode: int = 0,
    test_metrics: bool = True,
    progress: Progress | None = None,
) -> Result:
    """Run an optimizer on the problems 0 … P - 1 of a split.

    Problems, starts and mini-batches depend on seed, split, episode and the problem's number alone: every
    optimizer gets the same ones, whatever the chunk.

    Args:
        optimizer: The optimizer; a copy runs, itself it is not changed.
        task: The task.
        horizon: Inner steps T, >= 1.
        num_problems: Number of problems P, >= 1.
        seed: Seed of the problems, >= 0.
        split: Split of the task.
        device: Where to run.
        dtype: Floating-point type of the parameters.
        chunk: Problems that run at once, >= 1; None: `chunk_size`.
        episode: Number of the episode, >= 0; each has other problems.
        test_metrics: Whether to measure the task's test metrics at the end.
        progress: Called after each chunk with the number of problems done, and of all.

    Raises:
        ValueError: If an argument is out of range.
    """
    horizon = at_least("horizon", horizon, 1, "inner steps")
    num_problems = at_least("num_problems", num_problems, 1, f"problems of the {split} split")
    seed = at_least("seed", seed, 0, "seed of the problems")
    if split not in SPLITS:
        raise ValueError(f"split={split}: must be one of {', '.join(SPLITS)}")
    chunk = chunk_size(task, device) if chunk is None else at_least("chunk", chunk, 1, "problems at once")
    optimizer = prepared(optimizer, device, dtype)
    # What is done once for a process, such as starting autograd, does not count as time of the first
    # optimizer.
    run(optimizer, task.sample(ProblemKeys(seed, split, episode, range(1)), device=device, dtype=dtype), 1)

    losses = np.empty((horizon + 1, num_problems))
    final = np.empty(num_problems)
    metrics: dict[str, list[Array]] = {}
    seconds = 0.0
    for first in range(0, num_problems, chunk):
        last = min(first + chunk, num_problems)
        problem = task.sample(ProblemKeys(seed, split, episode, range(first, last)), device=device, dtype=dtype)
        carry, values, elapsed = run_episode(optimizer, problem, horizon)
        seconds += elapsed
        carry = read_out(optimizer, problem, carry)
        losses[:, first:last] = _losses(values)
        final[first:last] = _losses(final_loss(problem, carry, values[-1]))
        with torch.no_grad():
            measured = problem.test_metrics(carry.params, carry.buffers) if test_metrics else {}
            for name, value in measured.items():
                as_array = _losses if name.endswith("loss") else _numbers
                metrics.setdefault(name, []).append(as_array(value))
        if progress is not None:
            progress(last, num_problems)
    diverged = ~np.isfinite(losses).all(0) | ~np.isfinite(final) | (final > losses[0])
    joined = {name: np.concatenate(parts) for name, parts in metrics.items()}
    return Result(losses, final, joined, diverged, seconds / (horizon * num_problems))


def run_episode(optimizer: LearnedOptimizer, problem: Problem, horizon: int) -> tuple[Carry, Tensor, float]:
    """An episode without meta-gradient: the last carry, losses `(T + 1, B)`, and its wall-clock seconds."""
    device = problem.params.flat.device
    _synchronize(device)
    begin = time.perf_counter()
    carry, losses = run(optimizer, problem, horizon)
    _synchronize(device)
    return carry, losses, time.perf_counter() - begin


@torch.no_grad()
def read_out(optimizer: LearnedOptimizer, problem: Problem, carry: Carry) -> Carry:
    """The carry with the parameters that are to be used, and buffers (BatchNorm's running statistics) that fit them."""
    if not optimizer.reads_out:
        return carry
    params, buffers = optimizer.readout(carry.params, carry.state), carry.buffers
    for batch in problem.final_batches(_RENEWALS) if buffers else ():
        _, buffers = problem.loss(params, buffers, batch)
    return Carry(params, carry.state, buffers)


def prepared(optimizer: LearnedOptimizer, device: torch.device | str, dtype: torch.dtype) -> LearnedOptimizer:
    """A copy on the device, in the type, in evaluation mode."""
    return copy.deepcopy(optimizer).to(device=device, dtype=dtype).eval()


def chunk_size(task: Task, device: torch.device | str = "cpu") -> int:
    """Problems to run at once: their parameters have about 2**17 coordinates, 2**22 on a GPU."""
    return max(1, _COORDINATES.get(torch.device(device).type, 2**22) // num_coordinates(task))


def num_coordinates(task: Task) -> int:
    """Coordinates N of one problem, found by drawing one."""
    return max(1, task.sample(ProblemKeys(0, "val", 0, range(1))).params.layout.numel)


def tiled(num_problems: int, copies: int) -> Sequence[int]:
    """The numbers of P problems, again and again: indices of a batch with `copies` of each."""
    return tuple(range(num_problems)) * copies


def _losses(values: Tensor) -> Array:
    return _numbers(values.nan_to_num(torch.inf, torch.inf, torch.inf))


def _numbers(values: Tensor) -> Array:
    return values.detach().cpu().double().numpy()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
