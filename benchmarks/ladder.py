"""How far does the shipped optimizer carry in size? ReLU networks with one hidden layer on MNIST.

    python benchmarks/ladder.py --sizes 1e3,1e4,1e5,1e6 --json docs/results/ladder.json

For each size: the mean loss of the last 10 of 100 steps of ours and of Adam, tuned at that size on validation
problems, on the same test problems; and r⁺/√φ, the factor that all forces carry, which falls where one r for all
coordinates shortens steps. Four minutes on one core up to 1e6; goes on with what the JSON file has.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import numpy as np

from ph_l2o.commands.numerics import set_up_torch
from ph_l2o.evaluation import compare
from ph_l2o.evaluation.diagnostics import diagnose
from ph_l2o.optim.weights import load_weights
from ph_l2o.tasks import ImageClassification

HORIZON, BATCH, NUM_PROBLEMS, TUNING_PROBLEMS = 100, 64, 4, 2
WEIGHTS_OF_A_UNIT = 784 + 1 + 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1e3,1e4,1e5,1e6", help="weights, roughly; default: 1e3,1e4,1e5,1e6")
    parser.add_argument("--data", default="data", help="folder of the data sets")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    set_up_torch(1)
    optimizer = load_weights("default")
    rows: dict[str, dict[str, float]] = {}
    if arguments.json is not None and arguments.json.exists():
        rows = json.loads(arguments.json.read_text())
    for size in arguments.sizes.split(","):
        width = max(1, round(float(size) / WEIGHTS_OF_A_UNIT))
        if str(width) in rows:
            continue
        task = ImageClassification(
            "mnist", hidden_sizes=(width,), activation="relu", batch_size=BATCH, data_dir=arguments.data
        )
        entries = {"port_hamiltonian": optimizer, "adam": "adam"}
        found = compare(entries, task, HORIZON, NUM_PROBLEMS, seed=0, tuning_problems=TUNING_PROBLEMS)
        ours, adam = found.rows
        trust = np.median(diagnose(optimizer, task, HORIZON, num_problems=2).numbers["trust"][1:], axis=1)
        rows[str(width)] = {
            "weights": width * WEIGHTS_OF_A_UNIT + 10, "ours": ours["last10_mean"], "adam": adam["last10_mean"],
            "adam_learning_rate": adam["learning_rate"], "trust_first_10": float(trust[:10].mean()),
            "trust_last_10": float(trust[-10:].mean()),
        }  # fmt: skip
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    print("| weights | ours | tuned Adam | Adam / ours | r⁺/√φ, first 10 steps | last 10 |")
    print("|---:|---:|---:|---:|---:|---:|")
    for row in rows.values():
        print(
            f"| {row['weights']:,.0f} | {row['ours']:.3f} | {row['adam']:.3f} | {row['adam'] / row['ours']:.2f} "
            f"| {row['trust_first_10']:.2f} | {row['trust_last_10']:.2f} |"
        )


if __name__ == "__main__":
    main()
