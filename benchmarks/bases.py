"""What the Kronecker-factored form reaches with fewer eigenvectors.

    python benchmarks/bases.py --seeds 40,41,42 --json bases.json

The loops of `long_loops.py` and MLPs on MNIST, 600 steps with the loss and `total_steps`: the geometric mean over seeds
of the loss of the last tenth, and of the mean loss, over those of `whole`, which has all eigenvectors.
Seconds are of the whole loop. Goes on with what the JSON file has.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _measure
import long_loops
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ph_l2o import checkpoints
from ph_l2o.commands.numerics import set_up_torch
from ph_l2o.data import load_images
from ph_l2o.optim import PortHamiltonian
from ph_l2o.port_hamiltonian import PortHamiltonianKronecker, bases

# By name the eigenvectors of a long side over the length of the short one, and the longest side that keeps all.
VARIANTS: dict[str, tuple[float | None, int]] = {
    "whole": (None, 0), "shipped": (0.5, bases.WHOLE), "rank 1": (1.0, 0), "rank .5": (0.5, 0), "rank .25": (0.25, 0)
}  # fmt: skip
LEAST = 1e-3  # losses below it count as this


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", default="transformer,gru,conv_batchnorm,mnist 20,mnist 100,mnist 20-20-20")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    set_up_torch(1)
    content = _measure.taken_up(arguments.json, {"steps": arguments.steps, "losses": {}})
    names, jobs = arguments.variants.split(","), arguments.jobs.split(",")
    for seed in arguments.seeds.split(","):
        for job in jobs:
            for name in names:
                rows = content["losses"].setdefault(job, {}).setdefault(name, {})
                if seed not in rows:
                    rows[seed] = losses(make(job, arguments.data), name, int(seed), arguments.steps)
                    _measure.say(f"{job}, {name}, seed {seed}: {rows[seed]}")
                    _measure.write_json(arguments.json, content)
    print(table(content["losses"], jobs, names))


def make(job: str, folder: Path) -> Callable[[torch.Generator], tuple[nn.Module, long_loops.Loss]]:
    """A loop of `long_loops`, or `mnist` and the widths of the hidden layers."""
    return long_loops.JOBS[job] if job in long_loops.JOBS else lambda generator: mnist(job, folder, generator)


def mnist(job: str, folder: Path, generator: torch.Generator) -> tuple[nn.Module, long_loops.Loss]:
    """An MLP with mini-batches of 128 of the training images."""
    images = load_images("mnist", folder)
    widths = [784, *map(int, job.removeprefix("mnist ").split("-")), 10]
    layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    model = nn.Sequential(*layers[:-1])

    def loss() -> Tensor:
        chosen = torch.randint(len(images.train_labels), (128,), generator=generator)
        pixels = images.train_images[chosen].flatten(1) / 255
        return F.cross_entropy(model(pixels), images.train_labels[chosen])

    return model, loss


def losses(made: Callable[..., Any], name: str, seed: int, steps: int) -> dict[str, float]:
    """The mean loss over the last tenth and over all steps, and seconds."""
    learned, (rank, bases.WHOLE) = checkpoints.load_weights("kronecker"), VARIANTS[name]
    assert isinstance(learned, PortHamiltonianKronecker)
    learned.basis_rank = rank
    torch.manual_seed(seed)
    model, loss_of = made(torch.Generator().manual_seed(seed))
    optimizer = PortHamiltonian(model.parameters(), pretrained=learned, compile=True, total_steps=steps)
    found, began = list[float](), time.perf_counter()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step(loss=loss)
        found.append(loss.item())
    seconds, last = time.perf_counter() - began, found[-max(steps // 10, 1) :]
    return {"last": sum(last) / len(last), "mean": sum(found) / steps, "seconds": round(seconds, 1)}


def table(found: dict[str, Any], jobs: list[str], names: list[str]) -> str:
    """Last tenth (all steps) over `whole`, geometric means over seeds; the last row over jobs."""
    rows = [[job, *(_ratios(found, [job], name) for name in names)] for job in jobs]
    rows.append(["all", *(_ratios(found, jobs, name) for name in names)])
    return _measure.table(["", *names], rows)


def _ratios(found: dict[str, Any], jobs: list[str], name: str) -> str:
    of_both = []
    for key in ("last", "mean"):
        logs = [
            math.log(max(row[key], LEAST) / max(found[job]["whole"][seed][key], LEAST))
            for job in jobs
            for seed, row in found[job][name].items()
        ]
        of_both.append(math.exp(sum(logs) / len(logs)))
    return f"{of_both[0]:.3f} ({of_both[1]:.3f})"


if __name__ == "__main__":
    main()
