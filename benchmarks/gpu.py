"""What runs on a GPU, and how fast: the drop-in, meta-training, compiled inner steps; needs no data set and no Hydra.

    bash benchmarks/gpu.sh                                  # writes docs/results/gpu.json
    python benchmarks/gpu.py --device cpu --quick           # whether all of it runs

Each part is reported as failed, with its error, where it does not run; what takes long is left out where it is late.
"""

from __future__ import annotations

import argparse
import copy
import csv
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _gpu_steps
import _measure
import torch

import ph_l2o
from ph_l2o.optim import PortHamiltonian
from ph_l2o.optimizers import PortHamiltonian as Pure
from ph_l2o.port_hamiltonian.passes import passes_for
from ph_l2o.tasks import Quadratic

SETTINGS = {"num_problems": 64, "horizons": (20,), "val_every": 1000, "val_problems": 64, "val_horizon": 20}
LIMIT = 230.0  # seconds of all
SIZES = {"1e6": (144, 4), "1.9e7": (512, 6), "1e8": (1024, 8)}  # weights: width and depth
ALL = tuple(_gpu_steps.MAKE)
WEIGHTS: list[torch.Tensor] = []  # of each meta-training, on the CPU


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="tiny sizes; the numbers mean nothing")
    given = parser.parse_args()
    device, began = torch.device(given.device), time.perf_counter()
    result: dict[str, Any] = {"machine": _measure.machine(), "quick": given.quick, "parts": {}}
    result["machine"]["gpu"] = torch.cuda.get_device_name() if device.type == "cuda" else None
    for name, (seconds, part) in PARTS.items():
        _measure.say(name)
        start = time.perf_counter()
        if start - began + seconds > LIMIT:
            found = {"left out": f"{start - began:.0f} s were over, of {LIMIT:.0f}, and it takes about {seconds}"}
        else:
            found = _attempt(part, device, given.quick)
        result["parts"][name] = {**found, "seconds": time.perf_counter() - start}
        print(name, result["parts"][name], flush=True)
        _measure.write_json(given.json, result)


def _attempt(part: Callable[[torch.device, bool], dict[str, Any]], device: torch.device, quick: bool) -> dict[str, Any]:
    try:
        return part(device, quick)
    except Exception as error:  # the other parts are measured all the same
        traceback.print_exc()
        return {"failed": _gpu_steps.reason(error)}
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()


def same_steps(device: torch.device, quick: bool) -> dict[str, Any]:
    """Largest relative differences of losses and parameters to those on the CPU, after steps on a small network."""
    steps, found = 5 if quick else 20, {}
    for pretrained in ("default", "kronecker"):
        for dtype in (torch.float32, torch.float64):
            ends = [_trained(PortHamiltonian, pretrained, dtype, where, steps) for where in ("cpu", device)]
            found[f"{pretrained}, {str(dtype).removeprefix('torch.')}"] = _differences(*ends)
    return found


def same_passes(device: torch.device, quick: bool) -> dict[str, Any]:
    """The same between the passes that are taken on the device and plain operations there."""
    found: dict[str, Any] = {"passes": getattr(passes_for([_indexed(device)], False), "__name__", "unknown")}
    for pretrained in ("default", "kronecker"):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            ends = [
                _trained(make, pretrained, dtype, device, 5 if quick else 20)
                for make in (_gpu_steps.PlainSteps, PortHamiltonian)
            ]
            found[f"{pretrained}, {str(dtype).removeprefix('torch.')}"] = _differences(*ends)
    return found


def _indexed(device: torch.device) -> torch.device:
    return torch.empty(0, device=device).device


def _differences(
    reference: tuple[list[float], torch.Tensor], other: tuple[list[float], torch.Tensor]
) -> dict[str, Any]:
    losses = max(abs(a - b) / abs(a) for a, b in zip(reference[0], other[0], strict=True))
    return {"losses": losses, "parameters": float((reference[1] - other[1]).norm() / reference[1].norm())}


def _trained(
    make: Callable[..., Any], pretrained: str, dtype: torch.dtype, device: str | torch.device, steps: int
) -> tuple[list[float], torch.Tensor]:
    """Losses, and the parameters in the end.

    The gradients have full rank from the first on: where they have not, bases are free beside them, and which ones a
    decomposition gives is another thing on each device.
    """
    torch.manual_seed(0)
    layers = [torch.nn.Linear(16, 16, bias=False) for _ in range(3)]
    model = torch.nn.Sequential(layers[0], torch.nn.Tanh(), layers[1], torch.nn.Tanh(), layers[2]).to(device, dtype)
    inputs, targets = (torch.randn(1024, 16, dtype=torch.float64).to(device, dtype) for _ in range(2))
    optimizer, losses = make(model.parameters(), pretrained=pretrained), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step(loss=loss)
        losses.append(loss.item())
    return losses, torch.nn.utils.parameters_to_vector(model.parameters()).detach().double().cpu()


def step_times(size: str, names: tuple[str, ...], repetitions: int) -> Callable[[torch.device, bool], dict[str, Any]]:
    """See `_gpu_steps.step_times`."""

    def part(device: torch.device, quick: bool) -> dict[str, Any]:
        return _gpu_steps.step_times(device, (16, 1) if quick else SIZES[size], names, 1 if quick else repetitions)

    return part


def waits(device: torch.device, quick: bool) -> dict[str, Any]:
    """See `_gpu_steps.waits`."""
    return _gpu_steps.waits(device, (16, 1) if quick else SIZES["1.9e7"])


def orthogonal(device: torch.device, quick: bool) -> dict[str, Any]:
    """See `_gpu_steps.orthogonal`."""
    return _gpu_steps.orthogonal(device, 16 if quick else 512)


def meta_training(on_cpu: bool, compile: str | bool) -> Callable[[torch.device, bool], dict[str, Any]]:
    """Task-steps/s of meta-training, the median of its second half; seconds with compilation; the most memory.

    Also how far its weights are, relatively, from those of the first training here.
    """

    def part(device: torch.device, quick: bool) -> dict[str, Any]:
        if quick and compile:
            return {"left out": "it takes about a minute"}
        torch.manual_seed(0)
        where = "gpu" if device.type == "cuda" and not on_cpu else "cpu"
        if where == "gpu":
            torch.cuda.reset_peak_memory_stats(device)
        began, start, steps = time.perf_counter(), Pure(init_lr=0.05), 2 if quick else 12
        with tempfile.TemporaryDirectory() as folder:
            trained = ph_l2o.meta_train(
                copy.deepcopy(start), Quadratic(), outer_steps=steps, device=where, compile=compile,
                output_dir=folder, **SETTINGS,
            )  # fmt: skip
            rows = list(csv.DictReader((Path(folder) / "metrics.csv").open()))
        speeds = [float(row["train/task_steps_per_s"]) for row in rows if row["train/task_steps_per_s"]]
        weights = torch.nn.utils.parameters_to_vector(trained.parameters()).detach().double().cpu()
        WEIGHTS.append(weights)
        return {
            "task-steps/s": statistics.median(speeds[len(speeds) // 2 :]),
            "training, s": time.perf_counter() - began,
            "peak memory, MiB": torch.cuda.max_memory_allocated(device) / 2**20 if where == "gpu" else None,
            "outer steps": steps,
            "difference": float((weights - WEIGHTS[0]).norm() / WEIGHTS[0].norm()),
        }

    return part


PARTS: dict[
    str, tuple[int, Callable[[torch.device, bool], dict[str, Any]]]
] = {  # with about how many seconds they take
    "same steps": (10, same_steps),
    "same passes": (10, same_passes),
    "step times, 1e6": (10, step_times("1e6", ALL, 9)),
    "step times, 1.9e7": (20, step_times("1.9e7", ALL, 7)),
    "step times, 1e8": (15, step_times("1e8", tuple(name for name in ALL if name != "kronecker"), 5)),
    "waits": (15, waits),
    "orthogonal": (5, orthogonal),
    "meta-training, device": (10, meta_training(False, False)),
    "meta-training, cpu": (10, meta_training(True, False)),
    "meta-training, device, compiled": (45, meta_training(False, "step")),
    "step times, 1e8, kronecker": (40, step_times("1e8", ("adamw, foreach", "kronecker"), 2)),
    "meta-training, cpu, compiled": (100, meta_training(True, "step")),
}

if __name__ == "__main__":
    main()
