"""The README's figure: learning curves of ReLU networks on MNIST, with the trained optimizer and tuned baselines.

python benchmarks/figures.py
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ph_l2o.commands.checkpoint import load_optimizer
from ph_l2o.commands.numerics import set_up_torch
from ph_l2o.evaluation import BASELINES, compare
from ph_l2o.tasks import ImageClassification

PATTERN = "*/*_mnist_port_hamiltonian/checkpoints/best.ckpt"


def newest(runs: Path) -> Path:
    """The checkpoint of the newest training on MNIST."""
    found = sorted(runs.glob(PATTERN), key=lambda p: p.stat().st_mtime)
    if not found:
        raise SystemExit(f"no {PATTERN} in {runs}: train one with `python train.py task=mnist`, or give --checkpoint")
    return found[-1]


def main() -> None:
    """Compare and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="default: the newest best.ckpt of a training on MNIST")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets (default: data)")
    parser.add_argument("--out", type=Path, default=Path("docs/images/curves_mnist.png"))
    parser.add_argument("--activation", default="relu", help="of the networks (default: relu)")
    parser.add_argument("--problems", type=int, default=64, help="test problems (default: 64)")
    parser.add_argument("--tuning-problems", type=int, default=12, help="validation problems (default: 12)")
    parser.add_argument("--horizon", type=int, default=100, help="inner steps (default: 100)")
    parser.add_argument(
        "--baselines", nargs="+", default=["momentum", "nesterov", "rmsprop", "adam"], choices=BASELINES
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    set_up_torch(1)

    checkpoint = arguments.checkpoint or newest(arguments.runs)
    trained, _ = load_optimizer(checkpoint)
    print(f"checkpoint: {checkpoint}")
    comparison = compare(
        {"port_hamiltonian": trained, **{name: name for name in arguments.baselines}},
        ImageClassification(
            activation=arguments.activation,
            data_dir=arguments.data,
            name=f"MNIST, {arguments.activation} networks",
        ),
        horizon=arguments.horizon,
        num_problems=arguments.problems,
        tuning_problems=arguments.tuning_problems,
        cache_dir=arguments.runs / "cache",
    )
    print(comparison)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    comparison.plot(arguments.out)
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
