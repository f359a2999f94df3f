"""The comparisons of the README: trained optimizers against tuned baselines on test problems.

    python train.py
    python train.py optimizer=port_hamiltonian task=mnist
    python benchmarks/results.py --quadratic runs/…/best.ckpt --mnist runs/…/best.ckpt
    python benchmarks/results.py --mnist kronecker default --horizon 100 --prefix shipped_

Writes one JSON file for each comparison to docs/results/ (the schema of docs/comparison.md) and prints the tables as
Markdown. About half an hour on one core; tuned baselines are kept in runs/cache.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ph_l2o.checkpoints import SHIPPED, load_weights
from ph_l2o.commands.numerics import set_up_torch
from ph_l2o.evaluation import BASELINES, Comparison, compare
from ph_l2o.tasks import ImageClassification, Quadratic, Task

SLOW = ("nesterov", "adam")  # baselines at 1,000 steps of MNIST, where tuning all of them would take an hour


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quadratic", nargs="+", default=[], help="weights trained on quadratics, *.ckpt or shipped")
    parser.add_argument("--mnist", nargs="+", default=[], help="weights trained on MNIST, *.ckpt or shipped")
    parser.add_argument("--horizon", type=int, choices=(100, 1000), help="only this one")
    parser.add_argument("--prefix", default="", help="of the files' names")
    parser.add_argument("--data", default="data", help="folder of the data sets")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    set_up_torch(1)
    arguments.out.mkdir(parents=True, exist_ok=True)

    for horizon in (100, 1000):
        if arguments.horizon in (None, horizon) and arguments.quadratic:
            label = f"quadratic_{horizon}"
            report(arguments.quadratic, Quadratic(), BASELINES, horizon, 10_000, 1000, arguments, label)
    for horizon, problems, tuning, names in ((100, 64, 8, (*BASELINES, "muon", "soap")), (1000, 32, 4, SLOW)):
        for activation in ("sigmoid", "relu", "tanh") if arguments.horizon in (None, horizon) else ():
            if arguments.mnist:
                task = ImageClassification("mnist", activation=activation, data_dir=arguments.data)
                label = f"mnist_{activation}_{horizon}"
                report(arguments.mnist, task, names, horizon, problems, tuning, arguments, label)


def report(
    weights: list[str], task: Task, baselines: tuple[str, ...], horizon: int, num_problems: int, tuning_problems: int,
    arguments: argparse.Namespace, label: str,
) -> None:  # fmt: skip
    names = {file: name for name, file in SHIPPED.items()}
    entries = {names.get(path, "trained"): load_weights(path) for path in weights}
    label = arguments.prefix + label
    comparison = compare(
        entries | {name: name for name in baselines}, task, horizon, num_problems, seed=0,
        tuning_problems=tuning_problems, cache_dir=arguments.cache,
    )  # fmt: skip
    comparison.to_json(arguments.out / f"{label}.json")
    print(f"\n### {label}: {num_problems:,} test problems, {horizon:,} steps\n\n{markdown(comparison)}\n", flush=True)
    ours, *_ = comparison.finals
    worst = comparison.finals[ours].argmax()
    losses = ", ".join(f"{name} {values[worst]:.3g}" for name, values in comparison.finals.items())
    print(f"Final losses where that of {ours} is largest: {losses}\n", flush=True)


def markdown(comparison: Comparison) -> str:
    """A row for each optimizer; differences are ours minus the baseline's, paired, with 95 % intervals."""
    learned = comparison.rows[0]
    measured = learned["accuracy"] is not None
    names = ["optimizer", "learning rate", "mean", "median", "geo. mean", "last 10", "all", "diverged"]
    names += ["accuracy"] * measured + ["ours - it: last 10", "ours - it: all"]
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    for row in comparison.rows:
        final = row["final"]
        values = [final["mean"], final["median"], final["geometric_mean"], row["last10_mean"], row["all_mean"]]
        cells = [row["optimizer"], _hyperparameters(row), *(f"{v:.3g}" for v in values), str(row["diverged"])]
        if measured:
            cells.append(f"{row['accuracy']:.3f}")
        paired = (learned["paired_differences"] or {}).get(row["optimizer"])
        cells += [_interval(paired[what]) if paired else "" for what in ("last10", "all")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _hyperparameters(row: dict) -> str:
    if row["kind"] == "learned":
        return ""
    extra = [f"{k} {row['hyperparameters'][k]:g}" for k in row["grid"] if k != "lr"]
    return ", ".join([f"{row['learning_rate']:.3g}", *extra])


def _interval(estimate: dict) -> str:
    low, high = estimate["ci95"]
    return f"{estimate['mean']:+.3g} [{low:+.3g}, {high:+.3g}]"


if __name__ == "__main__":
    main()
