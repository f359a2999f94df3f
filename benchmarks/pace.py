"""Which pace suits an optimizer over long horizons, on validation problems of the mixture that it was pretrained on.

    python benchmarks/pace.py default --first=-0.2,0,0.2 --second=0,0.2,0.4,0.6

Meta-gradients of short windows teach to take ever smaller steps, since that lowers the loss within the window
(Wu et al. 2018, "Understanding short-horizon bias in stochastic meta-optimization"). The pace, see `Controller`, sets
it right by two numbers. For each pair of them this runs the optimizer on problems of all members, the same for all
pairs, and prints the mean of log((f_k + 1e-4 f_0) / f_0) over the last tenth of 100, 300 and 1,000 steps, and the mean
of the three; then the same as interquartile means over the members of differences to the mean of all pairs, in which
members that are hard to start on count less. Lower is better. `python -m ph_l2o.optim.export` then writes weights with
a pace. About a quarter of an hour for twelve pairs on one core.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import torch
from _mixture import mixture

from ph_l2o.checkpoints import load_weights
from ph_l2o.commands.numerics import set_up_torch
from ph_l2o.inner import run
from ph_l2o.keys import ProblemKeys
from ph_l2o.meta.score import relative_score
from ph_l2o.optimizers import PortHamiltonian, PortHamiltonianKronecker

HORIZONS, SEED, LONGEST = (100, 300, 1000), 78, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="default, kronecker, a .safetensors or a .ckpt")
    parser.add_argument("--first", default="-0.2,0,0.2", help="values of the first number")
    parser.add_argument("--second", default="0,0.2,0.4,0.6", help="values of the second number")
    parser.add_argument("--problems", type=int, default=3, help="of each member")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets")
    arguments = parser.parse_args()
    set_up_torch(1)
    optimizer = load_weights(arguments.weights)
    if not isinstance(optimizer, PortHamiltonian):
        parser.error(f"{arguments.weights}: holds {type(optimizer).__name__}, which has no pace")
    if isinstance(optimizer, PortHamiltonianKronecker):
        optimizer.max_preconditioner_dim = LONGEST  # longer sides take most of the time
    values = [[float(x) for x in column.split(",")] for column in (arguments.first, arguments.second)]
    pairs, count = list(itertools.product(*values)), arguments.problems
    optimizer.controller.pace = torch.tensor(pairs).repeat_interleave(count, 0)
    scores = []
    for name, member in mixture(arguments.data).members():
        problem = member.sample(ProblemKeys(SEED, "val", 5, list(range(count)) * len(pairs)))
        losses = run(optimizer, problem, HORIZONS[-1])[1].unflatten(1, (len(pairs), count))
        scores.append(torch.stack([torch.stack([score(x, h) for h in HORIZONS]) for x in losses.unbind(1)]))
        best = pairs[int(scores[-1].mean(1).argmin())]
        print(f"{name:24s} best {best[0]:5.2f} {best[1]:5.2f}", *(f"{x:6.2f}" for x in scores[-1].mean(1)), flush=True)
    table = torch.stack(scores)  # members, pairs, horizons
    ordered = (table - table.mean(1, keepdim=True)).sort(0).values
    cut = len(ordered) // 4
    for pair, found, iqm in zip(pairs, table.mean(0), ordered[cut : len(ordered) - cut].mean(0), strict=True):
        row = [*found, found.mean(), *iqm, iqm.mean()]
        print(f"{pair[0]:5.2f} {pair[1]:5.2f}", *(f"{x:7.3f}" for x in row))


def score(losses: torch.Tensor, horizon: int) -> torch.Tensor:
    """Of the last tenth of `horizon` steps, for losses `(T + 1, problems)`."""
    return relative_score(torch.cat([losses[:1], losses[horizon + 1 - horizon // 10 : horizon + 1]]))


if __name__ == "__main__":
    main()
