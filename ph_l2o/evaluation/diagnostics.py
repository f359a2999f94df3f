"""Look inside an optimizer: what it does over an episode, number by number and tensor by tensor."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from ph_l2o.evaluation.drawn_curves import running_mean, smoothing
from ph_l2o.evaluation.plots import line_style, new_figure
from ph_l2o.inner import run
from ph_l2o.keys import ProblemKeys, Split
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.palette import looks
from ph_l2o.params import Params
from ph_l2o.tasks.task import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOG = ("lr", "damping")  # vertical axes
_WORDS = {"lr": "learning rate"}
_COLUMNS = 3
_MAX_NAMES = 12  # tensors in the legend


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
    panels = [
        _loss_panel,
        *([_energy_panel] if _energies(found) else []),
        *([_trust_panel] if "trust" in found.numbers else []),
    ]
    count = len(panels) + len(found.by_tensor)
    rows = math.ceil(count / _COLUMNS)
    figure = new_figure(11, 2.9 * rows, dpi=130)
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).flatten()
    for place, draw in zip(axes, panels, strict=False):
        draw(place, found)
    shown = looks(found.tensors)
    for place, (name, values) in zip(axes[len(panels) :], found.by_tensor.items(), strict=False):
        for k, (tensor, look) in enumerate(shown.items()):
            place.plot(_medians(values[:, :, k]), color=look.color, linestyle=line_style(look), label=tensor)
        place.set(title=name, ylabel=_WORDS.get(name, name), yscale="log" if name in _LOG else "linear")
    for place in axes[:count]:
        place.grid(color="#E3E3E3", linewidth=0.6)
        place.spines[["top", "right"]].set_visible(False)
        place.set_xlabel("inner step")
    for place in axes[count:]:
        place.set_axis_off()
    if len(shown) <= _MAX_NAMES:
        handles, names = axes[len(panels)].get_legend_handles_labels()
        if count < len(axes):
            axes[count].legend(handles, names, fontsize=8, frameon=False, loc="upper left", title="tensors")
        else:
            figure.legend(handles, names, fontsize=8, frameon=False, loc="outside lower center", ncols=6)
    width = smoothing(len(found.loss))
    more = f", running means over {width} steps" if width > 1 else ""
    figure.suptitle(f"{title}; medians of {found.loss.shape[1]} problems{more}", fontsize=11)
    return figure


def _medians(values: np.ndarray) -> np.ndarray:
    """Over problems, `(steps,)`, as they are drawn."""
    width = smoothing(len(values))
    medians = np.median(values, 1).astype(np.float64)
    return running_mean(medians, width) if width > 1 else medians


def _loss_panel(axes: Axes, found: Diagnostics) -> None:
    axes.plot(_medians(found.loss), color="black")
    axes.set(title="loss", ylabel="loss", yscale="log" if (found.loss > 0).all() else "linear")


def _energies(found: Diagnostics) -> dict[str, np.ndarray]:
    """Medians over problems, by name."""
    energies = {name: np.median(found.numbers[name], 1) for name in ("kinetic", "spring") if name in found.numbers}
    if "energy" in found.numbers:
        account = np.median(found.numbers["energy"], 1)
        energies = {f"gone of {account[0]:.3g}": account[0] - account} | energies
    return {name: values for name, values in energies.items() if (values > 0).any()}


def _energy_panel(axes: Axes, found: Diagnostics) -> None:
    energies = _energies(found)
    for (name, values), look in zip(energies.items(), looks(energies).values(), strict=True):
        shown = np.where(values > 0, values, np.nan)
        axes.plot(shown, color=look.color, linestyle=line_style(look), label=name)
    axes.set(title="energies", ylabel="in units of the loss", yscale="log")
    axes.legend(fontsize=8, frameon=False)


def _trust_panel(axes: Axes, found: Diagnostics) -> None:
    axes.plot(_medians(found.numbers["trust"]), color="black", linewidth=0.8)
    axes.set(title="trust in the step before", ylabel="r⁺ / √φ")
