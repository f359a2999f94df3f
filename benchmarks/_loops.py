"""Training loops that change everything between the steps of a drop-in, and what its guarantee says of them."""

from __future__ import annotations

import math
import time
import warnings
from typing import Any

import torch
from torch import Tensor

from ph_l2o.optim import PortHamiltonian
from ph_l2o.optimizers import PortHamiltonian as Pure
from ph_l2o.optimizers import PortHamiltonianKronecker

FORMS = {
    "default": (Pure, False),
    "default compiled": (Pure, True),
    "kronecker": (PortHamiltonianKronecker, False),
    "kronecker compiled": (PortHamiltonianKronecker, True),
}
_SHAPES = ((6, 5), (5,), (3, 2, 2), ())
_TOLERANCE = 1e-5
_MOST_STD = 3.0  # of what is added to the weights


def run(form: str, loops: int, steps: int) -> dict[str, Any]:
    """Loops of a form of the drop-in, each with weights of its own, half of them perturbed."""
    began, found = time.perf_counter(), {"account_increased": 0, "energy_exceeded": 0, "outside_of_ball": 0}
    found |= {"not_finite": 0, "most_above_account": -1.0, "farthest": 0.0, "least_account": 1.0, "skipped": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a small lr, and of steps after the last
        for seed in range(loops):
            _loop(form, seed, loops, steps, found)
    return {"problems": loops, "steps": steps, **found, "seconds": round(time.perf_counter() - began, 1)}


@torch.no_grad()
def _loop(form: str, seed: int, loops: int, steps: int, found: dict[str, Any]) -> None:
    kind, compiled = FORMS[form]
    torch.manual_seed(seed)
    learned = kind(hidden_size=8, budget=(100.0, 1.0)[seed // 2 % 2], radius=(1000.0, 2.0)[seed // 4 % 2])
    if seed % 2:
        for p in learned.parameters():
            p += _MOST_STD * (seed + 1) / loops * torch.randn_like(p)
    params = [torch.randn(shape).requires_grad_() for shape in _SHAPES]
    total_steps = (None, steps // 2)[seed // 8 % 2]
    optimizer = PortHamiltonian(params, pretrained=learned, compile=compiled, total_steps=total_steps)
    skipped = 0
    before, unseen = math.inf, set[Tensor]()
    for _ in range(steps):
        unseen |= _change(optimizer, params)
        _set_gradients(params)
        loss = None if torch.rand(()) < 1e-4 else 10.0 ** torch.empty(()).uniform_(-30, 30)
        optimizer.step(loss=loss)
        state = optimizer.diagnostics()
        if math.isnan(optimizer.radius()):
            continue
        # What was set from outside is seen by the next step in which the tensor takes part, and that is not skipped.
        if state["skipped"] == skipped:
            unseen -= {p for p in params if p.grad is not None}
        skipped = state["skipped"]
        size = math.sqrt(sum(p.double().square().sum().item() for p in params if p in optimizer.state))
        above = (state["kinetic"] + state["spring"] - state["energy"]) / learned.budget
        found["account_increased"] += state["energy"] > before
        found["energy_exceeded"] += not above <= _TOLERANCE
        if not unseen:
            found["outside_of_ball"] += not size <= optimizer.radius() * (1 + _TOLERANCE)
            found["farthest"] = max(found["farthest"], size / optimizer.radius())
        found["not_finite"] += not math.isfinite(size)
        found["most_above_account"] = max(found["most_above_account"], above)
        found["least_account"] = min(found["least_account"], state["energy"] / learned.budget)
        before = state["energy"]
    found["skipped"] += skipped


def _change(optimizer: PortHamiltonian, params: list[Tensor]) -> set[Tensor]:
    """Sometimes options or weights, from outside; which weights were changed."""
    group, chance = optimizer.param_groups[0], torch.rand(())
    if chance < 0.02:
        group["lr"] = 10.0 ** torch.empty(()).uniform_(-3, 2).item() * (torch.rand(()) > 0.2).item()
        group["weight_decay"] = 10.0 ** torch.empty(()).uniform_(-2, 4).item() * (torch.rand(()) > 0.5).item()
    elif chance < 0.03:
        p = params[int(torch.randint(len(params), ()))]
        p.mul_(10.0 ** torch.empty(()).uniform_(-3, 1).item()).clamp_(-1e15, 1e15)
        return {p}
    return set()


def _set_gradients(params: list[Tensor]) -> None:
    """Of some tensors None or 0, of others along θ, or at random and of any size; rarely not finite."""
    size = 10.0 ** torch.empty(()).uniform_(-30, 30).item() if torch.rand(()) < 0.3 else 1.0
    everything = torch.rand(()) < 0.05
    for p in params:
        kind, noise = int(torch.randint(8, ())), torch.randn_like(p)
        p.grad = None if kind == 0 else (0 * p if kind == 1 or everything else size * (-p if kind < 4 else noise))
        if p.grad is not None:
            p.grad.nan_to_num_()
            if torch.rand(()) < 1e-3:
                p.grad.view(-1)[0] = math.nan
