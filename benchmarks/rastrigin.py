"""Train on Rastrigin's function by an evolution strategy, and measure: 512 starts, 1,000 steps.

    python benchmarks/rastrigin.py

f = 10 n + Σ x² − 10 cos 2πx in n = 10 coordinates from U(−5.12, 5.12)ⁿ has a local minimum near every point of whole
numbers. What gets over them are large steps that do not settle, and then become smaller. Gradients through such an
inner loop say nothing, so the optimizer starts with ports of that kind, chosen on validation problems, and ES-Single
does the rest. Adam is there for comparison, tuned on validation problems. Three minutes on one core.
"""

from __future__ import annotations

import argparse
import math

import torch

import ph_l2o
from ph_l2o.commands.numerics import set_up_torch
from ph_l2o.estimators import ESSingle
from ph_l2o.inner import run
from ph_l2o.keys import ProblemKeys, Split
from ph_l2o.optimizers import LearnedOptimizer, PortHamiltonian
from ph_l2o.tasks import Landscape, Problem

STEPS, STARTS = 1000, 512
EFFECTIVE_LR, LOGIT_KEEP, PACE = 8.0, -3.0, (0.0, -1.5)


def untrained() -> PortHamiltonian:
    """Strong damping, no average of the gradient, and steps that go down as (1 + k/50)^-1.5 from larger than a wave."""
    torch.manual_seed(0)
    optimizer = PortHamiltonian(pace=PACE)
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
    arguments = parser.parse_args()
    set_up_torch(1)
    task, optimizer = Landscape("rastrigin", dim=10), untrained()
    report("untrained", optimizer, task, arguments.split)
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
    report("trained", trained, task, arguments.split)
    problems = {split: task.sample(ProblemKeys(1, split, 0, range(STARTS))) for split in ("val", "test")}
    for name, beta1, falls in (("Adam", 0.9, False), ("Adam without momentum, rate falling to 0", 0.0, True)):
        rates = {lr: adam(problems["val"], lr, beta1, falls) for lr in (0.01, 0.03, 0.1, 0.3, 0.6, 1.0, 2.0)}
        lr = min(rates, key=lambda rate: rates[rate])
        print(
            f"{name}, learning rate {lr:g} (tuned): median {adam(problems['test'], lr, beta1, falls):.2f}", flush=True
        )


def adam(problem: Problem, lr: float, beta1: float, falls: bool) -> float:
    """Median loss after Adam's steps."""
    theta = problem.params.flat.clone().requires_grad_()
    optimizer = torch.optim.Adam([theta], lr=lr, betas=(beta1, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - falls * step / STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        problem.loss(problem.params.like(theta), {}, None)[0].sum().backward()
        optimizer.step()
        schedule.step()
    return problem.loss(problem.params.like(theta), {}, None)[0].median().item()


def report(name: str, optimizer: LearnedOptimizer, task: Landscape, split: Split) -> None:
    problem = task.sample(ProblemKeys(1, split, 0, range(STARTS)))
    carry, losses = run(optimizer, problem, STEPS)
    low, middle, high = losses[-1].quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    left = carry.state.energy.min().item()
    print(
        f"{name}: after {STEPS} steps median {middle:.2f} (quartiles {low:.2f} – {high:.2f}), start "
        f"{losses[0].median():.0f}; the account of 100 kept at least {left:.1f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
