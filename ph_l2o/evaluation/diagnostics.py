"""Look inside an optimizer: what it does over an episode, number by number and tensor by tensor."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from ph_l2o.evaluation.plots import new_figure
from ph_l2o.inner import run
from ph_l2o.keys import ProblemKeys, Split
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.params import Params
from ph_l2o.tasks.task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOG = ("lr", "damping")  # vertical axes


class Diagnostics(NamedTuple):
    """An episode of several problems.

    Attributes:
        tensors: Names of the optimizee's tensors, T.
        loss: Losses before each step, `(steps, P)`.
        numbers: What `LearnedOptimizer.diagnose` gives for each problem, by name, `(steps, P)`.
        by_tensor: What it gives for each tensor, by name, `(steps, P, T)`.
    """

    tensors: tuple[str, ...]
    loss: np.ndarray
    numbers: dict[str, np.ndarray]
    by_tensor: dict[str, np.ndarray]


def diagnose(
    optimizer: LearnedOptimizer,
    task: Task,
    horizon: int,
    *,
    num_problems: int = 4,
    seed: int = 0,
    split: Split = "test",
) -> Diagnostics:
    """Run an optimizer on problems of a task, and record what it does.

    Args:
        optimizer: The optimizer; nothing is recorded but losses for one that has no diagnostics.
        task: The task.
        horizon: Inner steps, >= 1.
        num_problems: Problems, >= 1.
        seed: Seed of all draws.
        split: Split of the problems.
    """
    problem = task.sample(ProblemKeys(seed, split, 0, range(num_problems)))
    watched = _Watched(optimizer)
    _, losses = run(watched, problem, horizon)
    arrays = {name: np.stack(values) for name, values in watched.found.items()}
    return Diagnostics(
        problem.params.layout.names,
        losses[:-1].cpu().numpy(),
        {name: x for name, x in arrays.items() if x.ndim == 2},
        {name: x for name, x in arrays.items() if x.ndim == 3},
    )


class _Watched(LearnedOptimizer):
    """An optimizer, and what it was about to do in each step."""

    def __init__(self, optimizer: LearnedOptimizer):
        super().__init__()
        self.optimizer, self.found = optimizer, dict[str, list[np.ndarray]]()

    def init(self, params: Params) -> Any:
        return self.optimizer.init(params)

    def update(self, params: Params, grads: Params, loss: Tensor | None, state: Any) -> tuple[Params, Any]:
        for name, value in self.optimizer.diagnose(params, grads, loss, state).items():
            self.found.setdefault(name, []).append(value.cpu().numpy())
        return self.optimizer.update(params, grads, loss, state)


def write_csv(found: Diagnostics, path: Path) -> None:
    """A row for each step: medians over problems, `name` or `name/tensor`."""
    columns = {"loss": found.loss, **found.numbers}
    for name, values in found.by_tensor.items():
        columns |= {f"{name}/{tensor}": values[:, :, k] for k, tensor in enumerate(found.tensors)}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *columns])
        for step, row in enumerate(zip(*(np.median(x, 1) for x in columns.values()), strict=True)):
            writer.writerow([step, *(f"{x:.6g}" for x in row)])


def plot(found: Diagnostics, *, title: str) -> Figure:
    """Medians over problems: loss and energies above, what is set for each tensor below.

    Raises:
        ValueError: If the optimizer has no diagnostics.
    """
    if not found.by_tensor:
        raise ValueError("the optimizer has no diagnostics")
    rows = 1 + (len(found.by_tensor) + 2) // 3
    figure = new_figure(11, 2.9 * rows, dpi=130)
    axes = figure.subplots(rows, 3).flatten()
    steps = np.arange(len(found.loss))
    axes[0].plot(steps, np.median(found.loss, 1), color="black")
    axes[0].set(title="loss", yscale="log" if (found.loss > 0).all() else "linear")
    energies = {name: np.median(found.numbers[name], 1) for name in ("kinetic", "spring") if name in found.numbers}
    if "energy" in found.numbers:
        account = np.median(found.numbers["energy"], 1)
        energies = {f"gone of {account[0]:.3g}": account[0] - account} | energies
    for name, values in energies.items():
        axes[1].plot(steps, np.where(values > 0, values, np.nan), label=name)
    axes[1].set(title="energies, in units of the loss", yscale="log")
    axes[1].legend(fontsize=8)
    if "trust" in found.numbers:
        axes[2].plot(steps, np.median(found.numbers["trust"], 1), color="black", linewidth=0.8)
    axes[2].set(title="trust r⁺ / √φ of the step before")
    colours = [f"C{k}" for k in range(10)]
    for panel, (name, values) in zip(axes[3:], found.by_tensor.items(), strict=False):
        for k, tensor in enumerate(found.tensors):
            style = "--" if "bias" in tensor else "-"
            panel.plot(steps, np.median(values[:, :, k], 1), style, color=colours[k % 10], label=tensor, linewidth=1)
        panel.set(title=name, yscale="log" if name in _LOG else "linear")
    if len(found.tensors) <= 12:
        axes[3].legend(fontsize=7)
    for panel in axes[3 + len(found.by_tensor) :]:
        panel.set_axis_off()
    for panel in axes:
        panel.grid(alpha=0.3)
        panel.set_xlabel("inner step")
    figure.suptitle(f"{title}; medians of {found.loss.shape[1]} problems")
    return figure
