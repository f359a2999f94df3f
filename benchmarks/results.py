r"""Trained optimizers beside tuned baselines on test problems of quadratics and MNIST.

    python train.py
    python train.py optimizer=port_hamiltonian task=mnist
    python benchmarks/results.py --quadratic runs/…/best.ckpt --mnist runs/…/best.ckpt
    python benchmarks/results.py --quadratic kronecker default --mnist kronecker default --horizon 100 --prefix shipped_
    python benchmarks/results.py --mnist kronecker default --activations relu --hidden-sizes 100 20,20,20 \
        --baselines adam muon --horizon 100 --prefix shipped_

Writes one JSON file for each comparison to docs/results/ (the schema of docs/comparison.md) and prints the tables as
Markdown; `python benchmarks/tables.py` then makes docs/results.md. About half an hour on one core for the third
command; tuned baselines are kept in runs/cache.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import _measure

from ph_l2o.checkpoints import SHIPPED, load_weights
from ph_l2o.commands.numerics import set_up_torch
from ph_l2o.evaluation import BASELINES, compare
from ph_l2o.tasks import ImageClassification, Quadratic, Task

SLOW = ("nesterov", "adam")  # baselines at 1,000 steps of MNIST, where tuning all of them would take an hour


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quadratic", nargs="+", default=[], help="weights to run on quadratics, *.ckpt or shipped")
    parser.add_argument("--mnist", nargs="+", default=[], help="weights to run on MNIST, *.ckpt or shipped")
    parser.add_argument("--horizon", type=int, choices=(100, 1000), help="only this one")
    parser.add_argument("--activations", nargs="+", default=["sigmoid", "relu", "tanh"], help="of the networks")
    parser.add_argument("--hidden-sizes", nargs="+", default=["20"], help="of the networks, such as 100 or 20,20,20")
    parser.add_argument("--baselines", nargs="+", help="in place of all")
    parser.add_argument("--prefix", default="", help="of the files' names")
    parser.add_argument("--data", default="data", help="folder of the data sets")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    set_up_torch(1)
    for horizon in (100, 1000):
        if arguments.horizon in (None, horizon):
            if arguments.quadratic:
                on_quadratics(horizon, arguments)
            if arguments.mnist:
                on_mnist(horizon, arguments)


def on_quadratics(horizon: int, arguments: argparse.Namespace) -> None:
    names = arguments.baselines or BASELINES
    report(arguments.quadratic, Quadratic(), names, horizon, 10_000, 1000, arguments, f"quadratic_{horizon}")


def on_mnist(horizon: int, arguments: argparse.Namespace) -> None:
    problems, tuning, names = (64, 8, BASELINES) if horizon == 100 else (32, 4, SLOW)
    for sizes in arguments.hidden_sizes:
        network = "" if sizes == "20" else f"_{sizes.replace(',', '-')}"
        for activation in arguments.activations:
            task = ImageClassification(
                "mnist", activation=activation, hidden_sizes=tuple(map(int, sizes.split(","))), data_dir=arguments.data
            )
            label = f"mnist_{activation}{network}_{horizon}"
            report(arguments.mnist, task, arguments.baselines or names, horizon, problems, tuning, arguments, label)


def report(
    weights: list[str], task: Task, baselines: Sequence[str], horizon: int, num_problems: int, tuning_problems: int,
    arguments: argparse.Namespace, label: str,
) -> None:  # fmt: skip
    names = {file: name for name, file in SHIPPED.items()}
    entries = {names.get(path, "trained"): load_weights(path) for path in weights}
    label = arguments.prefix + label
    comparison = compare(
        entries | {name: name for name in baselines}, task, horizon, num_problems, seed=0,
        tuning_problems=tuning_problems, cache_dir=arguments.cache,
    )  # fmt: skip
    _measure.write_json(arguments.out / f"{label}.json", comparison.to_dict() | _measure.made_with(1))
    print(f"\n### {label}: {num_problems:,} test problems, {horizon:,} steps\n\n{markdown(comparison.rows)}\n")
    ours, *_ = comparison.finals
    worst = comparison.finals[ours].argmax()
    losses = ", ".join(f"{name} {values[worst]:.3g}" for name, values in comparison.finals.items())
    print(f"Final losses where that of {ours} is largest: {losses}\n", flush=True)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A row for each optimizer; differences are the first one's minus its, paired, with 95 % intervals."""
    learned = rows[0]
    measured = learned["accuracy"] is not None
    names = ["optimizer", "learning rate", "mean", "median", "geometric mean", "last 10", "all", "diverged"]
    names += ["accuracy"] * measured + ["ours − it: final", "last 10", "all"]
    lines = []
    for row in rows:
        final = row["final"]
        values = [final["mean"], final["median"], final["geometric_mean"], row["last10_mean"], row["all_mean"]]
        cells = [row["optimizer"], _hyperparameters(row), *(f"{float(v):.3g}" for v in values), str(row["diverged"])]
        if measured:
            cells.append(f"{row['accuracy']:.3f}")
        paired = (learned["paired_differences"] or {}).get(row["optimizer"])
        cells += [interval(paired[what]) if paired else "" for what in ("final", "last10", "all")]
        lines.append(cells)
    return _measure.table(names, lines)


def _hyperparameters(row: Mapping[str, Any]) -> str:
    if row["kind"] == "learned":
        return ""
    extra = [f"{k} {row['hyperparameters'][k]:g}" for k in row["grid"] if k not in ("lr", "schedule")]
    return ", ".join([f"{row['learning_rate']:.3g}", *extra, *filter(None, [row.get("schedule")])])


def interval(estimate: Mapping[str, Any]) -> str:
    """A difference with its interval."""
    low, high = map(float, estimate["ci95"])
    return f"{float(estimate['mean']):+.3g} [{low:+.3g}, {high:+.3g}]"


if __name__ == "__main__":
    main()
