"""What a figure shows of single runs: paths of two coordinates, and the energies of a port-Hamiltonian optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ph_l2o.claims.kinds import Measured, register_kind, short, thinned
from ph_l2o.errors import ConfigError
from ph_l2o.evaluation.diagnostics import diagnose
from ph_l2o.inner import run
from ph_l2o.keys import ProblemKeys
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.tasks.task import Task

Point = Sequence[float]
_GRID = (47, 31)  # points of the loss, horizontally and vertically
ACCOUNT, PARTS = "account", ("kinetic", "spring", "tank")


def ground(
    task: Task, *, seed: int, start: Point, window: Sequence[float], minima: Sequence[Point], **_: Any
) -> dict[str, Any]:
    """The loss of a problem of two coordinates on a grid, and where its saddle and its minima are.

    Args:
        task: The task.
        seed: Of the problem.
        start: Where paths begin.
        window: Of the grid: left, right, bottom, top.
        minima: Where the loss is lowest.

    Raises:
        ConfigError: If the task has another number of coordinates, or the minima are none.
    """
    _check_window(window, start)
    left, right, bottom, top = window
    x, y = np.linspace(left, right, _GRID[0]), np.linspace(bottom, top, _GRID[1])
    points = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    found, lowest = _losses(task, seed, points), _losses(task, seed, np.array(minima, dtype=float))
    if lowest.max() > found.min() + 1e-6 * found.max():
        raise ConfigError(f"options.minima={[list(m) for m in minima]}: the loss is lower elsewhere in the window")
    saddle = getattr(_sample(task, seed, 1), "saddle", None)
    return {
        "x": [short(v) for v in x],
        "y": [short(v) for v in y],
        "loss": [[short(v) for v in row] for row in found.reshape(len(y), len(x))],
        "start": [float(v) for v in start],
        "saddle": None if saddle is None else saddle[0].tolist(),
        "minima": [[float(v) for v in m] for m in minima],
    }


@register_kind("paths", measure="steps", statistic="median", scene=ground, tabled=False)
def follow_paths(
    optimizer: LearnedOptimizer, task: Task, *, horizon: int, num_problems: int, seed: int, start: Point, **_: Any
) -> Measured:
    """The way from a start, of a task of two coordinates: `path`, and the steps until the saddle is escaped.

    Args:
        optimizer: The optimizer.
        task: The task, of problems with `escaped`.
        horizon: Inner steps.
        num_problems: Problems, of which the first one's path is kept; all have this start.
        seed: Of the problems.
        start: Where the path begins.
        **_: What `ground` takes beside.

    Raises:
        ConfigError: If the task has another number of coordinates, or no test of escape.
    """
    problem = _sample(task, seed, num_problems)
    if not hasattr(problem, "escaped"):
        raise ConfigError(f"kind=paths: problems of {task.name} have no test of escape; take task=saddle task.dim=2")
    problem.params = problem.params.like(torch.tensor([list(map(float, start))]).repeat(num_problems, 1))
    carry, points, losses = None, [problem.params.flat[0].tolist()], []
    for step in range(horizon):
        carry, both = run(optimizer, problem, 1, carry=carry, first=step)
        points.append(optimizer.readout(carry.params, carry.state).flat[0].tolist())
        losses = losses[:-1] + list(both)
    values = torch.stack(losses).cpu()
    escaped = (problem.escaped(values) & torch.isfinite(values)).numpy()
    steps = np.where(escaped.any(0), escaped.argmax(0), np.inf)
    x, y = ([short(p[k]) for p in points] for k in (0, 1))
    path = {"steps": [float(k) for k in range(horizon + 1)], "x": x, "y": y}
    return Measured({"steps": steps, "final": _finite(values[-1].numpy())}, {"path": path}, {})


@register_kind("energies", measure="left", tabled=False)
def record_energies(optimizer: LearnedOptimizer, task: Task, *, horizon: int, num_problems: int, seed: int) -> Measured:
    """The account of energy over a run, what of it is in use, and the loss; and what is `left` of it at the end.

    `rise` is the largest rise of the account in a step, as a share of what it begins with; by the guarantee 0, but for
    rounding.

    Raises:
        ConfigError: If the optimizer has no account.
    """
    found = diagnose(optimizer, task, horizon, num_problems=num_problems, seed=seed)
    if "energy" not in found.numbers:
        raise ConfigError(
            f"kind=energies: {type(optimizer).__name__} has no account of energy; take a port_hamiltonian"
        )
    account = found.numbers["energy"].astype(np.float64)
    curves = {"loss": thinned(found.loss), ACCOUNT: thinned(account)}
    curves |= {name: thinned(found.numbers[name]) for name in PARTS if name in found.numbers}
    rise = np.diff(account, axis=0).max(0, initial=0.0) / account[0]
    return Measured({"left": _finite(account[-1] / account[0]), "rise": _finite(rise)}, curves, {})


def _sample(task: Task, seed: int, count: int) -> Any:
    problem = task.sample(ProblemKeys(seed, "test", 0, range(count)))
    if problem.params.flat.shape[1] != 2:
        size = problem.params.flat.shape[1]
        raise ConfigError(f"kind=paths: {task.name} has {size} coordinates; paths are drawn of two, as of task.dim=2")
    return problem


def _losses(task: Task, seed: int, points: np.ndarray) -> np.ndarray:
    """Losses of the first problem at points `(P, 2)`."""
    _sample(task, seed, 1)
    problem = task.sample(ProblemKeys(seed, "test", 0, [0] * len(points)))
    at = problem.params.like(torch.from_numpy(points).to(problem.params.flat))
    return problem.loss(at, problem.buffers, next(problem.batches(0, 1)))[0].numpy()


def _check_window(window: Sequence[float], start: Point) -> None:
    if len(window) != 4 or not (window[0] < window[1] and window[2] < window[3]):
        raise ConfigError(f"options.window={list(window)}: must be left, right, bottom and top, in ascending pairs")
    if len(start) != 2 or not (window[0] <= start[0] <= window[1] and window[2] <= start[1] <= window[3]):
        raise ConfigError(f"options.start={list(start)}: must be a point of the window {list(window)}")


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.inf).astype(np.float64)
