"""What an average of the iterates is worth, by how fast its weights grow: on the validation half of suite `jobs`.

    python benchmarks/average.py --json docs/results/average.json --data data

Each job runs twice with the shipped Kronecker-factored weights, on two problems: as they are, whose rates fall as
(1 + k/200)^(-1/2) for ever, and with `total_steps`, warm-up and a linear fall. Beside the first go averages of
its iterates, in which iterate k weighs as k^η, for all η at once. What counts is the loss over the last tenth of the
steps at each of these weights, on the same mini-batches. Goes on with what the JSON file has.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _measure
import torch
from hydra import compose, initialize_config_module
from torch import Tensor

from ph_l2o.checkpoints import load_weights
from ph_l2o.commands.configuration import register
from ph_l2o.commands.numerics import set_up_torch
from ph_l2o.commands.run_suite import build_suite
from ph_l2o.evaluation.estimates import summarize
from ph_l2o.inner import inner_step, start
from ph_l2o.keys import ProblemKeys
from ph_l2o.optimizers.averaged import share
from ph_l2o.tasks.task import Problem

POWERS = (1, 3, 5, 8, 12)
TAIL = 0.1  # share of the steps whose losses count
LAST, KNOWN = "last", "total_steps"
Losses = dict[str, list[float]]


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets")
    parser.add_argument("--problems", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=int, default=5000, help="steps to which longer jobs are cut")
    arguments = parser.parse_args()
    set_up_torch(1)
    asked = {"problems": arguments.problems, "seed": arguments.seed, "longest": arguments.longest}
    content = _measure.taken_up(arguments.json, {**asked, "jobs": {}})
    register()
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("evaluate", ["suite=jobs_validation", f"paths.data={arguments.data.resolve()}"])
    for name, (task, horizon) in build_suite(config).items():
        if name in content["jobs"]:
            continue
        steps = min(horizon, arguments.longest)
        keys = ProblemKeys(arguments.seed, "val", 0, range(arguments.problems))
        problem = task.sample(keys)
        losses = run(problem, steps, None, POWERS) | run(problem, steps, steps, ())
        content["jobs"][name] = {"steps": steps, "losses": losses}
        _measure.say(f"{name}: {losses}")
        _measure.write_json(arguments.json, content)
    print(table(content["jobs"]))


@torch.no_grad()
def run(problem: Problem, steps: int, total_steps: int | None, powers: Sequence[int]) -> Losses:
    """Losses over the last tenth of the steps, of each problem: at the iterates and at their averages."""
    optimizer: Any = load_weights("kronecker")
    optimizer.total_steps = total_steps
    carry, averages = start(optimizer, problem), dict.fromkeys(powers, problem.params)
    last = KNOWN if total_steps else LAST
    sums = dict[str, Tensor]()
    first = steps - max(1, round(TAIL * steps))
    for step, batch in enumerate(problem.batches(0, steps)):
        if step > first:
            for power, average in averages.items():
                loss = problem.loss(average, carry.buffers, batch)[0]
                sums[str(power)] = sums.get(str(power), 0) + loss
        carry, loss = inner_step(optimizer, problem, carry, batch)
        if step > first:
            sums[last] = sums.get(last, 0) + loss
        for power, average in averages.items():
            averages[power] = average.like(torch.lerp(average.flat, carry.params.flat, share(step + 1, power)))
    return {name: (total / (steps - first - 1)).tolist() for name, total in sums.items()}


def table(jobs: dict[str, Any]) -> str:
    """Loss with `total_steps` over the others, a line for each job: above 1 is better than with a known length."""
    names = (LAST, *map(str, POWERS))
    lines, logs = [], dict[str, list[float]]()
    for job, found in jobs.items():
        losses = found["losses"]
        for name in names:
            pairs = zip(losses[KNOWN], losses[name], strict=True)
            logs.setdefault(name, []).append(sum(math.log(a / b) for a, b in pairs) / len(losses[name]))
        lines.append([f"{job}, {found['steps']}", *(f"{math.exp(logs[name][-1]):.3f}" for name in names)])
    columns = {name: [math.exp(x) for x in values] for name, values in logs.items()}
    lines.append(["interquartile mean", *(f"{summarize(columns[name]).iqm:.3f}" for name in names)])
    lines.append(["worst", *(f"{min(columns[name]):.3f}" for name in names)])
    return _measure.table(["", "last iterate", *(f"η = {power}" for power in POWERS)], lines)


if __name__ == "__main__":
    main()
