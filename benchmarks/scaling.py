"""What several processes cost: time of an exchange, of everybody's draws, of a window; memory of a window.

python benchmarks/scaling.py --json scaling.json

The exchanges are between two processes of this machine (gloo), so they hold for no network. Draws and windows are in
CPU time of one thread, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import _measure
import torch
from torch import distributed as dist

from ph_l2o.estimators import ES, OBJECTIVES, Truncated
from ph_l2o.inner import Window
from ph_l2o.keys import ProblemKeys
from ph_l2o.meta.episodes import EpisodeSource
from ph_l2o.optimizers import LSTM, LearnedOptimizer, PortHamiltonian
from ph_l2o.tasks import ImageClassification, Quadratic

SIZES = {"port_hamiltonian": 1956, "lstm": 5141}
WHERE = {"device": torch.device("cpu"), "dtype": torch.float32}
MIB = 2**20


def exchanges(rank: int, repetitions: int) -> dict[str, dict]:
    """Microseconds of one exchange between two processes, each the mean of 50 in a row."""
    dist.init_process_group("gloo", rank=rank, world_size=2)
    three, losses = torch.zeros(3), torch.zeros(2, 32)
    calls: dict[str, Callable[[], object]] = {
        "all-reduce of 3 numbers": lambda: dist.all_reduce(three),
        "all-gather of 2 × 32 outer losses": lambda: dist.all_gather([losses.clone(), losses.clone()], losses),
    }
    for name, size in SIZES.items():
        gradient = torch.zeros(size)
        calls[f"all-reduce of {size} numbers ({name})"] = lambda gradient=gradient: dist.all_reduce(gradient)
    found = {name: timed(call, repetitions, 50) for name, call in calls.items()}
    dist.barrier()
    dist.destroy_process_group()
    return found


def timed(
    call: Callable[[], object], repetitions: int, in_a_row: int, clock: Callable[[], float] = time.perf_counter
) -> dict:
    """Microseconds of a call."""
    values = []
    for repetition in range(repetitions + 1):
        began = clock()
        for _ in range(in_a_row):
            call()
        if repetition:  # the first one warms up
            values.append((clock() - began) / in_a_row * 1e6)
    return _measure.summary(values)


def two_processes(repetitions: int) -> dict[str, dict]:
    """Run `exchanges` as two processes."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(s.getsockname()[1])}
    os.environ.update(address)
    call = [sys.executable, __file__, "--rank", "1", "--repetitions", str(repetitions)]
    other = subprocess.Popen(call, env=os.environ | address)
    found = exchanges(0, repetitions)
    assert other.wait() == 0
    return found


def draws(repetitions: int) -> dict[str, dict]:
    """Microseconds for the draws of one problem and pair."""
    keys = ProblemKeys(0, "train", 0, range(16))
    found = {}
    for name, size in SIZES.items():
        phi = {"all": torch.zeros(size)}
        one = timed(lambda phi=phi: ES().draws_of(keys, 0, phi), repetitions, 5, time.process_time)
        found[f"draws of {size} numbers ({name})"] = _measure.summary([v / 16 for v in one["values"]])
    return found


CASES: dict[str, tuple[Callable[[], LearnedOptimizer], str, int, int, str]] = {
    f"port_hamiltonian, {task}, {problems} × {truncation}, {estimator}": (
        PortHamiltonian, task, problems, truncation, estimator,
    )
    for estimator in ("truncated", "es")
    for task, problems, truncation in (("quadratic", 64, 20), ("quadratic", 32, 20), ("mnist", 4, 50), ("mnist", 2, 50))
}  # fmt: skip
CASES["lstm, mnist, 4 × 20, truncated"] = (LSTM, "mnist", 4, 20, "truncated")


def window(name: str, data: Path, repetitions: int) -> dict:
    """Milliseconds of CPU time of a window without exchange, MiB that it needs at its peak, and MiB of the carry."""
    make, task_name, problems, truncation, estimator_name = CASES[name]
    task = Quadratic() if task_name == "quadratic" else ImageClassification(data_dir=data)
    task.prepare()
    order = 1 if make is LSTM else 2
    estimator = Truncated(order=order) if estimator_name == "truncated" else ES()
    source = EpisodeSource(task, seed=0, num_problems=problems, horizons=(100,), start=estimator.start)
    optimizer = make()
    phi, objective = dict(optimizer.named_parameters()), OBJECTIVES["mean_log_loss"]
    episode = source.begin(0, optimizer, rank=0, world_size=1, **WHERE)
    window = Window(optimizer, phi, episode.problem, episode.carry, 0, truncation, objective)
    estimator(window._replace(count=1))  # warms up
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    values = []
    for _ in range(repetitions):
        began = time.process_time()
        estimate = estimator(window)
        values.append(1e3 * (time.process_time() - began))
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    numbers = estimate.carry.params.flat.numel() + sum(x.numel() for x in estimate.carry.state)
    return {"ms": _measure.summary(values), "peak MiB": peak, "carry MiB": numbers * 4 / MIB}


def in_a_process_of_its_own(name: str, arguments: argparse.Namespace) -> dict:
    """`window`, so that the peak of one case is not hidden by that of another."""
    call = [sys.executable, __file__, "--window", name, "--data", str(arguments.data)]
    call += ["--repetitions", str(arguments.repetitions)]
    return json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    """Measure, print tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5, help="of each measurement (default: 5)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets (default: data)")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--window", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if arguments.rank is not None:
        exchanges(arguments.rank, arguments.repetitions)
        return
    if arguments.window is not None:
        print(json.dumps(window(arguments.window, arguments.data, arguments.repetitions)))
        return

    micro = two_processes(arguments.repetitions) | draws(arguments.repetitions)
    windows = {}
    for name in CASES:
        _measure.say(name)
        windows[name] = in_a_process_of_its_own(name, arguments)
    content = {"microseconds": micro, "windows": windows}
    print(tables(content))
    print(f"\nmedian (minimum – maximum) of {arguments.repetitions} repetitions, 1 thread")
    _measure.write_json(arguments.json, content)


def tables(content: Mapping[str, Any]) -> str:
    """Microseconds of exchanges and draws; time and memory of windows."""
    first = [(name, _measure.spread(v)) for name, v in content["microseconds"].items()]
    second = [
        (name, _measure.spread(v["ms"]), f"{v['peak MiB']:.0f}", f"{v['carry MiB']:.2f}")
        for name, v in content["windows"].items()
    ]
    header = ("window", "CPU ms", "peak MiB", "carry MiB")
    return f"{_measure.table(('', 'µs'), first)}\n\n{_measure.table(header, second)}"


if __name__ == "__main__":
    main()
