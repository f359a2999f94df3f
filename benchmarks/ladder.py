"""How far do the shipped optimizers carry in size? ReLU networks with one hidden layer on MNIST.

    python benchmarks/ladder.py --sizes 1e3,1e4,1e5,1e6 --json docs/results/ladder.json

For each size: the mean loss of the last 10 of 100 steps of ours, plain and Kronecker-factored, and of Adam, tuned at
that size on validation problems, on the same test problems; and the plain form's r⁺/√φ in the first and last 10 steps,
the factor that all forces carry, which falls where one r for all coordinates shortens steps. Ten minutes on one core up
to 1e6; goes on with what the JSON file has.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import _measure
import numpy as np

from ph_l2o.checkpoints import load_weights
from ph_l2o.commands.numerics import set_up_torch
from ph_l2o.evaluation import evaluate_optimizer, tune
from ph_l2o.evaluation.diagnostics import diagnose
from ph_l2o.optimizers import Adam, LearnedOptimizer
from ph_l2o.tasks import ImageClassification

HORIZON, BATCH, NUM_PROBLEMS, TUNING_PROBLEMS = 100, 64, 4, 2
WEIGHTS_OF_A_UNIT = 784 + 1 + 10
LARGE = 5_000_000  # weights, above which Adam is tuned over the learning rate alone, on one problem


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1e3,1e4,1e5,1e6", help="weights, roughly; default: 1e3,1e4,1e5,1e6")
    parser.add_argument("--data", default="data", help="folder of the data sets")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    set_up_torch(1)
    shipped = {"plain": load_weights("default"), "kronecker": load_weights("kronecker")}
    before = None
    if arguments.json is not None and arguments.json.exists():
        before = json.loads(arguments.json.read_text())
    content = before or {"horizon": HORIZON, "batch": BATCH, "num_problems": NUM_PROBLEMS, "rows": {}}
    content |= _measure.made_with(1, before)
    rows = content["rows"]
    for size in arguments.sizes.split(","):
        width = max(1, round(float(size) / WEIGHTS_OF_A_UNIT))
        task = ImageClassification(
            "mnist", hidden_sizes=(width,), activation="relu", batch_size=BATCH, data_dir=arguments.data
        )
        task.prepare()
        row = rows.setdefault(str(width), {"weights": width * WEIGHTS_OF_A_UNIT + 10})
        if "adam" not in row:
            large = width * WEIGHTS_OF_A_UNIT > LARGE
            grid = {"lr": [10 ** (k / 2) for k in range(-8, -1)]} if large else None
            problems = 1 if large else TUNING_PROBLEMS
            tuned = tune("adam", task, horizon=HORIZON, num_problems=problems, seed=0, grid=grid)
            row["adam"] = end(Adam(**tuned.hyperparameters), task)
            row["adam_learning_rate"] = tuned.hyperparameters["lr"]
        for name, optimizer in shipped.items():
            if name not in row:
                row[name] = end(optimizer, task)
        if "trust_first_10" not in row:
            trust = np.median(diagnose(shipped["plain"], task, HORIZON, num_problems=2).numbers["trust"][1:], axis=1)
            row |= {"trust_first_10": float(trust[:10].mean()), "trust_last_10": float(trust[-10:].mean())}
        _measure.write_json(arguments.json, content)
    print(table(content))


def table(content: Mapping[str, Any]) -> str:
    """A row for each size."""
    header = ("weights", "plain", "Kronecker", "tuned Adam", "Adam / plain", "Adam / Kronecker")
    header += ("r⁺/√φ, first 10 steps", "last 10")
    lines = []
    for row in content["rows"].values():
        losses = (row["plain"], row["kronecker"], row["adam"])
        ratios = (row["adam"] / row["plain"], row["adam"] / row["kronecker"])
        trusts = (row["trust_first_10"], row["trust_last_10"])
        cells = (*(f"{x:.3f}" for x in losses), *(f"{x:.2f}" for x in (*ratios, *trusts)))
        lines.append((f"{row['weights']:,.0f}", *cells))
    return _measure.table(header, lines)


def end(optimizer: LearnedOptimizer, task: ImageClassification) -> float:
    """Mean loss of the last 10 steps on the test problems."""
    result = evaluate_optimizer(optimizer, task, horizon=HORIZON, num_problems=NUM_PROBLEMS, seed=0)
    return float(result.losses[-10:].mean())


if __name__ == "__main__":
    main()
