"""Which parts of the port-Hamiltonian optimizer matter: variants, meta-trained and measured on validation tasks.

python benchmarks/ablation.py --task mnist --variants whole,ratio --seeds 0,1 --json ablation.json

- `whole`, `no_brake`, `ratio`, `no_account`, `momentum`, `adam`: structures of `PortHamiltonianAblation`, where
  `ph_l2o/port_hamiltonian/ablation.py` says what is taken away;
- `hidden loss`: it never uses the loss;
- `small budget`: 8 in place of 100, with the same spring;
- `one average`: without the slow average of the gradient among the features.
"""

from __future__ import annotations

import argparse
import functools
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _measure
import torch
from torch import Tensor

from ph_l2o import meta_train
from ph_l2o.commands.numerics import set_up_torch
from ph_l2o.inner import run
from ph_l2o.keys import ProblemKeys
from ph_l2o.optimizers import PortHamiltonian, PortHamiltonianAblation
from ph_l2o.params import Params
from ph_l2o.port_hamiltonian.ablation import STRUCTURES
from ph_l2o.port_hamiltonian.controller import Controller
from ph_l2o.port_hamiltonian.state import PortHamiltonianState
from ph_l2o.tasks import ImageClassification, Quadratic, Task

SLOW = (1, 7)  # among the features: mean square of the slow average, its cosine with the gradient


class HiddenLoss(PortHamiltonian):
    """Never uses the loss."""

    def init(self, params: Params) -> PortHamiltonianState:
        """With the loss hidden."""
        state = super().init(params)
        return self.hide_loss(state, torch.ones_like(state.energy, dtype=torch.bool))


class _Fast(Controller):
    def forward(self, input: Tensor) -> Tensor:
        shown = [float(k not in SLOW) for k in range(input.shape[-1])]
        return super().forward(input * torch.tensor(shown, dtype=input.dtype, device=input.device))


class OneAverage(PortHamiltonian):
    """The controller does not see the slow average."""

    def __init__(self, *, init_lr: float = 0.05):
        super().__init__(init_lr=init_lr)
        self.controller = _Fast(32, init_lr)


VARIANTS: dict[str, Callable[..., PortHamiltonian]] = {
    **{name: functools.partial(PortHamiltonianAblation, structure=name) for name in STRUCTURES},
    "hidden loss": HiddenLoss,
    "small budget": functools.partial(PortHamiltonian, budget=8.0, radius=1000 * math.sqrt(8 / 100)),
    "one average": OneAverage,
}
ACTIVATIONS = ("sigmoid", "relu", "tanh")


def made(name: str, seed: int, init_lr: float) -> PortHamiltonian:
    """An optimizer before its training."""
    torch.manual_seed(seed)
    return VARIANTS[name](init_lr=init_lr)


def quadratic(name: str, seed: int, outer_steps: int, data: Path) -> dict[str, float]:
    """Trained on quadratics; mean and geometric mean after 100 steps, the largest loss after 1,000."""
    del data
    optimizer = made(name, seed, 0.05)
    trained = meta_train(
        optimizer, Quadratic(), outer_steps, truncation=20, seed=seed, compile="step", num_problems=64,
        horizons=(20, 60, 100, 100, 200), val_every=max(outer_steps // 6, 1), val_problems=256, val_horizon=100,
    )  # fmt: skip
    problem = Quadratic().sample(ProblemKeys(1, "val", 1, range(2000)))
    _, losses = run(trained, problem, 1000)
    after = losses[100].double()
    return {
        "mean": after.mean().item(),
        "geometric mean": after.clamp_min(1e-12).log().mean().exp().item(),
        "median at 1,000": losses[1000].median().item(),
        "largest at 1,000": losses[1000].max().item(),
    }


def mnist(name: str, seed: int, outer_steps: int, data: Path) -> dict[str, float]:
    """Trained on three activations; the mean of the last 10 of 100 steps, and of 50 at 1,000 steps."""
    task = functools.partial(ImageClassification, data_dir=data)
    trained = meta_train(
        made(name, seed, 0.02), task(activation=ACTIVATIONS), outer_steps, truncation=50, seed=seed,
        compile="step", num_problems=4, horizons=(100, 200), rescale=0.7, val_every=max(outer_steps // 4, 1),
        val_problems=12, val_horizon=100,
    )  # fmt: skip
    found: dict[str, float] = {}
    tests: dict[str, tuple[Task, int]] = {a: (task(activation=a), 100) for a in ACTIVATIONS}
    tests["width 100"] = task(activation="relu", hidden_sizes=(100,)), 100
    tests["three layers"] = task(activation="relu", hidden_sizes=(20, 20, 20)), 100
    tests["sigmoid at 1,000"] = task(activation="sigmoid"), 1000
    for test, (problems, horizon) in tests.items():
        count, last = (24, 10) if horizon == 100 else (8, 50)
        _, losses = run(trained, problems.sample(ProblemKeys(1, "val", 1, range(count))), horizon)
        found[test] = losses[-last:].mean().item()
        if horizon == 100:
            found[f"{test}, all"] = losses[1:].mean().item()
    return found


TASKS = {"quadratic": (quadratic, 600), "mnist": (mnist, 160)}


def main() -> None:
    """Train and measure what is asked for; the JSON file grows with each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--variants", default=",".join(VARIANTS), help="default: all")
    parser.add_argument("--seeds", default="0", help="default: 0")
    parser.add_argument("--outer-steps", type=int, help="default: 600 on quadratics, 160 on MNIST")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    set_up_torch(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    measure, outer_steps = TASKS[arguments.task]
    rows: list[dict[str, Any]] = []
    for name in arguments.variants.split(","):
        for seed in map(int, arguments.seeds.split(",")):
            began = time.perf_counter()
            found = measure(name, seed, arguments.outer_steps or outer_steps, arguments.data)
            rows.append({"variant": name, "seed": seed, **found})
            numbers = ", ".join(f"{key} {value:.3g}" for key, value in found.items())
            print(f"{name}, seed {seed}: {numbers} ({time.perf_counter() - began:.0f} s)", flush=True)
            _measure.write_json(arguments.json, {"task": arguments.task, "rows": rows})


if __name__ == "__main__":
    main()
