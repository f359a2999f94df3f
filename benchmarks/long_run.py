"""Ten thousand steps on MNIST, a hundred times the usual horizon: shipped weights beside baselines tuned for it.

    python benchmarks/long_run.py --activations relu

784-20-10, mini-batches of 128, test problems of the meta-test half, paired. Each baseline is tuned on validation
problems at the same horizon over at least 7 learning rates. Prints the mean loss of the last 500 steps, loss and
accuracy on the 10,000 test images, which no optimizee sees, with the smallest and largest over the problems. A quarter
of an hour for an activation on a core, most of it for `port_hamiltonian_kronecker`, whose bases of 784 pixels are dear.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ph_l2o.checkpoints import SHIPPED, load_weights
from ph_l2o.commands.numerics import set_up_torch
from ph_l2o.evaluation import evaluate_optimizer, tune
from ph_l2o.evaluation.tuning import baseline
from ph_l2o.tasks import ImageClassification

STEPS, LAST = 10_000, 500
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
    arguments = parser.parse_args()
    set_up_torch(1)
    for activation in arguments.activations.split(","):
        task = ImageClassification("mnist", activation=activation, data_dir=str(arguments.data))
        task.prepare()
        print(f"{activation}: loss of the last {LAST} steps | loss on test images | accuracy", flush=True)
        for name in arguments.optimizers.split(","):
            if name in SHIPPED:
                optimizer, settings = load_weights(SHIPPED[name]), ""
            else:
                tuned = tune(
                    name, task, horizon=arguments.steps, num_problems=arguments.tuning_problems, seed=0,
                    grid={"lr": LEARNING_RATES}, cache_dir=arguments.cache,
                )  # fmt: skip
                optimizer = baseline(name)(**tuned.hyperparameters)
                settings = ", ".join(f"{key} {value:.3g}" for key, value in tuned.hyperparameters.items())
            result = evaluate_optimizer(
                optimizer, task, horizon=arguments.steps, num_problems=arguments.problems, seed=0
            )
            columns = (result.losses[-LAST:].mean(0), result.metrics["test_loss"], result.metrics["accuracy"])
            cells = (f"{x.mean():.4f} ({x.min():.4f} – {x.max():.4f})" for x in columns)
            print(f"  {name:28s} {' | '.join(cells)} | {result.diverged.sum()} diverged | {settings}", flush=True)


if __name__ == "__main__":
    main()
