"""What runs on a GPU, and how fast: the drop-in, meta-training, compiled inner steps; needs no data set and no Hydra.

    bash benchmarks/gpu.sh                                  # writes docs/results/gpu.json
    python benchmarks/gpu.py --device cpu --quick           # whether all of it runs

Each part compares with the same on the CPU, and is reported as failed with its error where it does not run.
"""

from __future__ import annotations

import argparse
import copy
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _measure
import torch

import ph_l2o
from ph_l2o.optim import PortHamiltonian
from ph_l2o.optimizers import PortHamiltonian as Pure
from ph_l2o.tasks import Quadratic

SETTINGS = {"num_problems": 64, "horizons": (20,), "val_every": 1000, "val_problems": 64, "val_horizon": 20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="tiny sizes; the numbers mean nothing")
    given = parser.parse_args()
    device = torch.device(given.device)
    result: dict[str, Any] = {"machine": _measure.machine(), "quick": given.quick, "parts": {}}
    result["machine"]["gpu"] = torch.cuda.get_device_name() if device.type == "cuda" else None
    for name, part in PARTS.items():
        _measure.say(name)
        try:
            result["parts"][name] = part(device, given.quick)
        except Exception as error:  # the other parts are measured all the same
            traceback.print_exc()
            result["parts"][name] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"}
        print(name, result["parts"][name], flush=True)
        _measure.write_json(given.json, result)


def same_steps(device: torch.device, quick: bool) -> dict[str, Any]:
    """Largest relative difference of the parameters to those on the CPU, after steps on a small network."""
    found = {}
    for pretrained in ("default", "kronecker"):
        for dtype in (torch.float32, torch.float64):
            ends = [_trained(pretrained, dtype, where, 5 if quick else 50) for where in ("cpu", device)]
            found[f"{pretrained}, {str(dtype).removeprefix('torch.')}"] = float(
                (ends[0] - ends[1]).norm() / ends[0].norm()
            )
    return found


def _trained(pretrained: str, dtype: torch.dtype, device: str | torch.device, steps: int) -> torch.Tensor:
    torch.manual_seed(0)
    layers = (torch.nn.Linear(20, 64), torch.nn.Tanh(), torch.nn.Linear(64, 3))
    model = torch.nn.Sequential(*layers).to(device, dtype)
    inputs, targets = (torch.randn(256, n, dtype=torch.float64).to(device, dtype) for n in (20, 3))
    optimizer = PortHamiltonian(model.parameters(), pretrained=pretrained)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step(loss=loss)
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach().double().cpu()


def step_times(device: torch.device, quick: bool) -> dict[str, Any]:
    """Milliseconds of `step()` beside AdamW's, in turns, on the matrices of a small transformer."""
    width, depth = (32, 1) if quick else (512, 6)
    shapes = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width), (width,), (width,)] * depth
    contestants: dict[str, Callable[[], float]] = {}
    for name, make in {
        "adamw, foreach": lambda p: torch.optim.AdamW(p, foreach=True),
        "adamw, fused": lambda p: torch.optim.AdamW(p, fused=True),
        "default": lambda p: PortHamiltonian(p),
        "kronecker": lambda p: PortHamiltonian(p, pretrained="kronecker"),
    }.items():
        torch.manual_seed(0)
        params = [torch.nn.Parameter(0.02 * torch.randn(shape, device=device)) for shape in shapes]
        for p in params:
            p.grad = torch.randn_like(p)
        contestants[name] = _timed(make(params), device, 3 if quick else 20)
    found = _measure.contest(contestants, 3 if quick else 9, unit="ms", better="lower", references=["adamw, foreach"])
    return {"parameters": sum(torch.Size(s).numel() for s in shapes), "entries": found.entries}


def _timed(optimizer: torch.optim.Optimizer, device: torch.device, count: int) -> Callable[[], float]:
    def measure() -> float:
        _wait(device)
        began = time.perf_counter()
        for _ in range(count):
            optimizer.step()
        _wait(device)
        return (time.perf_counter() - began) / count * 1e3

    return measure


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def meta_training(device: torch.device, quick: bool) -> dict[str, Any]:
    """Seconds of meta-training with nothing and with the whole step compiled; relative difference of the weights."""
    torch.manual_seed(0)
    start, found = Pure(init_lr=0.05), {}
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    steps = 2 if quick else 30
    for where in dict.fromkeys(("cpu", accelerator)):
        for mode in (False, "step"):
            if mode and quick:
                continue
            began = time.perf_counter()
            trained = ph_l2o.meta_train(
                copy.deepcopy(start), Quadratic(), outer_steps=steps, device=where, compile=mode, **SETTINGS
            )  # fmt: skip
            weights = torch.nn.utils.parameters_to_vector(trained.parameters()).detach()
            found[f"{where}, compile={mode}"] = {"seconds": time.perf_counter() - began, "weights": weights}
    reference = found["cpu, compile=False"]["weights"]
    for entry in found.values():
        entry["difference"] = float((entry.pop("weights") - reference).norm() / reference.norm())
    return {"outer_steps": steps, **found}


PARTS = {"same steps": same_steps, "step times": step_times, "meta-training": meta_training}

if __name__ == "__main__":
    main()
