"""Speed of meta-training in task-steps/s (inner steps of one problem), whole outer loop included.

python benchmarks/meta_training.py --json meta_training.json
python benchmarks/meta_training.py --reference path/to/prototype.py

A reference is a Python file with `meta_train`, `Controller`, `Quadratic` and `MnistMlp`: the same optimizer in one
script. It runs in turns with ours, on the same problems' sizes, truncation and episode lengths.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import _measure
import pytorch_lightning as pl
import torch

from ph_l2o.estimators import Truncated
from ph_l2o.meta import MetaLearner, MetaSettings, fit
from ph_l2o.optimizers import HNN, LSTM, LearnedOptimizer, PortHamiltonian
from ph_l2o.tasks import ImageClassification, Quadratic, Task

ACTIVATIONS = ("sigmoid", "relu", "tanh")


@dataclass(frozen=True)
class Case:
    """What is trained on what.

    Attributes:
        name: Name in the table.
        make: Makes the optimizer.
        task: `quadratic` or `mnist`.
        activations: Of the MNIST networks.
        problems: Problems of a batch.
        truncation: Inner steps of a window.
        order: Order of the meta-gradient.
        horizons: Inner steps of the episodes.
        rescale: Log scale of the random re-scaling.
        outer_steps: Outer steps of a repetition.
        has_reference: Whether the reference script has the same.
    """

    name: str
    make: Callable[[], LearnedOptimizer]
    task: str
    problems: int
    truncation: int
    order: int
    horizons: tuple[int, ...]
    outer_steps: int
    rescale: float = 0.0
    activations: tuple[str, ...] = ("sigmoid",)
    has_reference: bool = False


QUADRATIC = {"task": "quadratic", "problems": 64, "truncation": 20}
MNIST = {"task": "mnist", "problems": 4}
CASES = (
    Case(
        "port_hamiltonian, quadratic", lambda: PortHamiltonian(init_lr=0.05), **QUADRATIC, order=2,
        horizons=(20, 60, 100, 100, 200), outer_steps=60, has_reference=True,
    ),
    Case(
        "port_hamiltonian, mnist", PortHamiltonian, **MNIST, truncation=50, order=2, horizons=(100,), outer_steps=6,
        rescale=0.7, activations=ACTIVATIONS, has_reference=True,
    ),
    Case("lstm, quadratic", LSTM, **QUADRATIC, order=1, horizons=(100,), outer_steps=30),
    Case("lstm, mnist", LSTM, **MNIST, truncation=20, order=1, horizons=(100,), outer_steps=2),
    Case("hnn, quadratic", HNN, **QUADRATIC, order=1, horizons=(100,), outer_steps=60),
    Case("hnn, mnist", HNN, **MNIST, truncation=20, order=1, horizons=(100,), outer_steps=10),
)  # fmt: skip


class Clock(pl.Callback):
    """Seconds from the start of the first to the end of the last outer step; validation comes after it."""

    def __init__(self) -> None:
        self.began = self.ended = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        self.began = self.began or time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self.ended = time.perf_counter()


def ours(case: Case, data: Path, outer_steps: int) -> Callable[[], float]:
    """A measurement of `ph_l2o.meta.fit`: Lightning, logging to metrics.csv and outer optimizer included."""
    task: Task = Quadratic()
    if case.task == "mnist":
        task = ImageClassification(activation=case.activations, data_dir=data)
    task.prepare()
    settings = MetaSettings(
        outer_steps=outer_steps,
        num_problems=case.problems,
        horizons=case.horizons,
        rescale=case.rescale,
        val_every=outer_steps,
        val_problems=2,
        val_horizon=1,
    )

    def measure() -> float:
        torch.manual_seed(0)
        learner = MetaLearner(case.make(), task, Truncated(case.truncation, order=case.order), settings)  # type: ignore[arg-type]
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder:
            fit(learner, folder, callbacks=[clock])
        return _task_steps(case, outer_steps) / (clock.ended - clock.began)

    return measure


def reference(script: ModuleType, case: Case, data: Path, outer_steps: int) -> Callable[[], float]:
    """A measurement of the reference script's `meta_train`."""
    generator = torch.Generator().manual_seed(1)
    images: tuple[torch.Tensor, torch.Tensor] | None = None
    if case.task == "mnist":
        pixels, labels = ImageClassification(data_dir=data).images("train")
        images = pixels.flatten(1).float() / 255, labels

    def sample(episode: int) -> Any:
        if images is None:
            return script.Quadratic(case.problems, generator)
        activation = case.activations[episode % len(case.activations)]
        return script.MnistMlp(case.problems, generator, images, act=activation, log_scale=case.rescale)

    def measure() -> float:
        torch.manual_seed(0)
        optimizer = script.Controller()
        began = time.perf_counter()
        script.meta_train(optimizer, sample, outer_steps, case.truncation, list(case.horizons), lambda *_: None)
        return _task_steps(case, outer_steps) / (time.perf_counter() - began)

    return measure


def _task_steps(case: Case, outer_steps: int) -> int:
    return outer_steps * case.truncation * case.problems


def measured(case: Case, arguments: argparse.Namespace, script: ModuleType | None) -> dict[str, Any]:
    """One case: its settings, our speed and the reference's."""
    outer_steps = max(1, round(case.outer_steps * arguments.scale))
    contestants = {"ours": ours(case, arguments.data, outer_steps)}
    if script is not None and case.has_reference:
        contestants["reference"] = reference(script, case, arguments.data, outer_steps)
    for measure in contestants.values():
        measure()  # warm up
    values = _measure.interleaved(contestants, arguments.repetitions)
    settings = {k: v for k, v in vars(case).items() if k not in ("name", "make", "has_reference", "outer_steps")}
    found: dict[str, Any] = {"name": case.name, **settings, "outer_steps": outer_steps}
    found |= {name: _measure.summary(v) for name, v in values.items()}
    if "reference" in values:
        found["ratio"] = _measure.ratios(values["ours"], values["reference"])
    return found


def imported(path: Path) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location("reference", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SystemExit(f"--reference {path}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(case: dict[str, Any]) -> Sequence[str]:
    """A line of the table."""
    sizes = f"{case['problems']} × {case['truncation']}, order {case['order']}"
    others = (_measure.spread(case[k]) if k in case else "–" for k in ("reference", "ratio"))
    return case["name"], sizes, _measure.spread(case["ours"]), *others


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, help="a script to run in turns with ours")
    parser.add_argument("--repetitions", type=int, default=5, help="of each measurement (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default: 1)")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the outer steps of a repetition")
    parser.add_argument("--only", default="", help="cases whose name has this text")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets (default: data)")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

    script = None if arguments.reference is None else imported(arguments.reference)
    found = [measured(case, arguments, script) for case in CASES if arguments.only in case.name]
    header = ("case", "problems × truncation", "task-steps/s", "reference", "ratio")
    print(_measure.table(header, [row(case) for case in found]))
    print(
        f"\nmedian (minimum – maximum) of {arguments.repetitions} repetitions in turns, {arguments.threads} thread(s)"
    )
    _measure.write_json(
        arguments.json,
        {
            "unit": "task-steps/s",
            "machine": _measure.machine(arguments.threads),
            "repetitions": arguments.repetitions,
            "cases": found,
        },
    )


if __name__ == "__main__":
    main()
