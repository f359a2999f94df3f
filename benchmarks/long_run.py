"""Ten thousand steps on MNIST, a hundred times the usual horizon: shipped weights beside baselines tuned for it.

    python benchmarks/long_run.py --activations relu --json docs/results/long_run.json

784-20-10, mini-batches of 128, test problems of the meta-test half, paired. Each baseline is tuned on validation
problems at the same horizon over at least 7 learning rates. Reports the mean loss of the last 500 steps, and loss and
accuracy on the 10,000 test images, which no optimizee sees, with the smallest and largest over the problems. A quarter
of an hour for an activation on a core, most of it for `port_hamiltonian_kronecker`, whose bases of 784 pixels are dear.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import _measure

from ph_l2o.checkpoints import SHIPPED, load_weights
from ph_l2o.commands.numerics import set_up_torch
from ph_l2o.evaluation import evaluate_optimizer, tune
from ph_l2o.tasks import ImageClassification

STEPS, LAST = 10_000, 500
MEASURES = ("last", "test_loss", "accuracy")
BASELINES = ("adam", "nesterov", "rmsprop", "muon")
LEARNING_RATES = [10 ** (k / 2) for k in range(-8, 3)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--activations", default="sigmoid,relu,tanh")
    parser.add_argument("--optimizers", default=",".join([*SHIPPED, *BASELINES]))
    parser.add_argument("--problems", type=int, default=4, help="test problems")
    parser.add_argument("--tuning-problems", type=int, default=2)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    set_up_torch(1)
    content: dict[str, Any] = {name: getattr(arguments, name) for name in ("steps", "problems", "tuning_problems")}
    content |= {"last": LAST, "activations": {}}
    for activation in arguments.activations.split(","):
        task = ImageClassification("mnist", activation=activation, data_dir=str(arguments.data))
        task.prepare()
        rows = content["activations"].setdefault(activation, {})
        for name in arguments.optimizers.split(","):
            rows[name] = row(name, task, arguments)
            _measure.say(f"{activation}, {name}: {rows[name]}")
            _measure.write_json(arguments.json, content)
    print(tables(content))


def row(name: str, task: ImageClassification, arguments: argparse.Namespace) -> dict[str, Any]:
    """What an optimizer reaches: of each measure the values of all problems."""
    settings: dict[str, float] = {}
    if name in SHIPPED:
        optimizer = load_weights(SHIPPED[name])
    else:
        tuned = tune(
            name, task, horizon=arguments.steps, num_problems=arguments.tuning_problems, seed=0,
            grid={"lr": LEARNING_RATES}, cache_dir=arguments.cache,
        )  # fmt: skip
        optimizer, settings = tuned.optimizer, dict(tuned.hyperparameters)
    result = evaluate_optimizer(optimizer, task, horizon=arguments.steps, num_problems=arguments.problems, seed=0)
    measures = (result.losses[-LAST:].mean(0), *(result.metrics[key] for key in MEASURES[1:]))
    values = {key: [float(x) for x in values] for key, values in zip(MEASURES, measures, strict=True)}
    return {**values, "diverged": int(result.diverged.sum()), "hyperparameters": settings}


def tables(content: Mapping[str, Any]) -> str:
    """A table for each activation."""
    parts = []
    for activation, rows in content["activations"].items():
        last = f"loss of the last {content['last']} steps"
        header = (activation, last, "loss on test images", "accuracy", "diverged")
        lines = [(name, *(_cell(row[key]) for key in MEASURES), str(row["diverged"])) for name, row in rows.items()]
        parts.append(_measure.table(header, lines))
    return "\n\n".join(parts)


def _cell(values: list[float]) -> str:
    return f"{sum(values) / len(values):.4f} ({min(values):.4f} – {max(values):.4f})"


if __name__ == "__main__":
    main()
