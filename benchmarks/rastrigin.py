"""Train on Rastrigin's function by an evolution strategy, and measure: 512 starts, 1,000 steps.

    python benchmarks/rastrigin.py --json docs/results/rastrigin.json

f = 10 n + Σ x² − 10 cos 2πx in n = 10 coordinates from U(−5.12, 5.12)ⁿ has a local minimum near every point of whole
numbers. What gets over them are large steps that do not settle, and then become smaller. Gradients through such an
inner loop say nothing, so the optimizer starts with ports of that kind, chosen on validation problems, and ES-Single
does the rest. Adam is there for comparison, tuned on validation problems. Three minutes on one core.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import _measure
import torch

import ph_l2o
from ph_l2o.commands.numerics import set_up_torch
from ph_l2o.estimators import ESSingle
from ph_l2o.inner import run
from ph_l2o.keys import ProblemKeys, Split
from ph_l2o.optimizers import LearnedOptimizer, PortHamiltonian
from ph_l2o.tasks import Landscape

STEPS, STARTS = 1000, 512
RATES = (0.01, 0.03, 0.1, 0.3, 0.6, 1.0, 2.0)  # of Adam
EFFECTIVE_LR, LOGIT_KEEP, DECAY = 8.0, -3.0, (50.0, 1.5)


def untrained() -> PortHamiltonian:
    """Strong damping, no average of the gradient, and steps that go down as (1 + k/50)^-1.5 from larger than a wave."""
    torch.manual_seed(0)
    optimizer = PortHamiltonian(decay=DECAY)
    log_lr = math.log(EFFECTIVE_LR * (1 + math.exp(-LOGIT_KEEP)))
    with torch.no_grad():
        optimizer.controller.powers.zero_()
        bias = dict(optimizer.controller.named_parameters())["4.bias"]
        bias.copy_(torch.tensor([log_lr, -4.0, LOGIT_KEEP, -3.0, 4.0]))
    return optimizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outer-steps", type=int, default=2000)
    parser.add_argument("--learning-rate", type=float, default=0.001)
    parser.add_argument("--sigma", type=float, default=0.05)
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    set_up_torch(1)
    task, optimizer = Landscape("rastrigin", dim=10), untrained()
    rows: dict[str, Any] = {"untrained": learned(optimizer, task, arguments.split)}
    trained = ph_l2o.meta_train(
        optimizer,
        task,
        outer_steps=arguments.outer_steps,
        estimator=ESSingle(num_pairs=2, sigma=arguments.sigma),
        num_problems=128,
        horizons=(STEPS,),
        episodes=20,
        learning_rate=arguments.learning_rate,
        val_problems=STARTS,
        val_horizon=STEPS,
        val_every=arguments.outer_steps // 5,
    )
    rows["trained"] = learned(trained, task, arguments.split)
    for name, beta1, falls in (("Adam, tuned", 0.9, False), ("Adam, tuned, β₁ = 0, rate falling to 0", 0.0, True)):
        tuned = {lr: adam(task, "val", lr, beta1, falls)["median"] for lr in RATES}
        lr = min(RATES, key=tuned.__getitem__)
        rows[name] = adam(task, arguments.split, lr, beta1, falls) | {"learning_rate": lr}
    content = {"steps": STEPS, "starts": STARTS, "split": arguments.split, "rows": rows}
    print(table(content))
    _measure.write_json(arguments.json, content)


def learned(optimizer: LearnedOptimizer, task: Landscape, split: Split) -> dict[str, float]:
    """Quartiles after the last step, the median at the start, and the least that an account has left."""
    carry, losses = run(optimizer, task.sample(ProblemKeys(1, split, 0, range(STARTS))), STEPS)
    start = losses[0].median().item()
    return {**quartiles(losses[-1]), "start": start, "least_account": carry.state.energy.min().item()}


def adam(task: Landscape, split: Split, lr: float, beta1: float, falls: bool) -> dict[str, float]:
    """Quartiles after Adam's last step."""
    problem = task.sample(ProblemKeys(1, split, 0, range(STARTS)))
    theta = problem.params.flat.clone().requires_grad_()
    optimizer = torch.optim.Adam([theta], lr=lr, betas=(beta1, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - falls * step / STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        problem.loss(problem.params.like(theta), {}, None)[0].sum().backward()
        optimizer.step()
        schedule.step()
    return quartiles(problem.loss(problem.params.like(theta), {}, None)[0].detach())


def quartiles(losses: torch.Tensor) -> dict[str, float]:
    """Median and quartiles over starts."""
    values = losses.quantile(losses.new_tensor([0.25, 0.5, 0.75])).tolist()
    return dict(zip(("low", "median", "high"), values, strict=True))


def table(content: Mapping[str, Any]) -> str:
    """A row for each optimizer."""
    header = ("", "median (quartiles)", "median at the start", "least left of an account of 100")
    lines = [
        (name, f"{row['median']:.1f} ({row['low']:.1f} – {row['high']:.1f})", *(
            f"{row[key]:.1f}" if key in row else "–" for key in ("start", "least_account")
        ))
        for name, row in content["rows"].items()
    ]  # fmt: skip
    return _measure.table(header, lines)


if __name__ == "__main__":
    main()
