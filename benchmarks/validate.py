"""Scores of checkpoints on the mixture that they were pretrained on, to choose between them: validation problems alone.

    python benchmarks/validate.py runs/…/best.ckpt runs/…/last.ckpt

Prints for each member and checkpoint the mean of log((f_k + 1e-4 f_0) / f_0) over the first 100 steps, and over the
last tenth of 300; then the means over the members. About two minutes for a checkpoint on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from _mixture import mixture

from ph_l2o.checkpoints import load_checkpoint
from ph_l2o.commands.numerics import set_up_torch
from ph_l2o.inner import run
from ph_l2o.keys import ProblemKeys
from ph_l2o.meta.score import relative_score

NUM_PROBLEMS, HORIZON, SEED = 6, 300, 77


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets")
    arguments = parser.parse_args()
    set_up_torch(1)
    optimizers = [load_checkpoint(path)[0] for path in arguments.checkpoints]
    scores: list[list[tuple[float, float]]] = [[] for _ in optimizers]
    for name, member in mixture(arguments.data).members():
        for optimizer, found in zip(optimizers, scores, strict=True):
            problem = member.sample(ProblemKeys(SEED, "val", 5, range(NUM_PROBLEMS)))
            losses = run(optimizer, problem, HORIZON)[1]
            late = torch.cat([losses[:1], losses[-HORIZON // 10 :]])
            found.append((relative_score(losses[:101]).item(), relative_score(late).item()))
        print(f"{name:24s}", *(f"{found[-1][0]:6.2f} {found[-1][1]:6.2f}" for found in scores), flush=True)
    means = [torch.tensor(found).mean(0).tolist() for found in scores]
    print(f"{'mean':24s}", *(f"{early:6.3f} {late:6.3f}" for early, late in means))


if __name__ == "__main__":
    main()
