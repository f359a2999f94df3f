"""One step of the drop-in beside torch's Adam, AdamW and Muon and another's SOAP, and what it needs of memory."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from _measure import Found, contest, entry, say

from suite import fresh
from suite.options import Options

REFERENCE = "torch.optim.Adam(foreach=True)"
SOAP = "pytorch_optimizer.SOAP"  # renews its bases every 10 steps
OTHERS = ("torch.optim.AdamW(fused=True)", "torch.optim.Muon", SOAP)
OURS = ("plain", "plain, no loss", "compile=True", "compile=True, no loss", "kronecker", "kronecker, compile=True")
Shapes = list[tuple[int, ...]]


def measured(options: Options) -> Found:
    """Time for few large tensors, many small ones, and two networks; memory of 10⁷ parameters, each in a process."""
    found = Found()
    for label, shapes in networks(options.quick).items():
        say(f" {label}")
        names = [
            name
            for name in (REFERENCE, *OTHERS, *OURS)
            if not (options.quick and ("compile" in name or name == SOAP))
            and not (name == "torch.optim.Muon" and any(len(shape) != 2 for shape in shapes))
        ]
        steps = options.pick(20, 1)
        found.add(
            contest(
                {f"{name}, {label}": timed(name, shapes, steps) for name in names},
                options.repetitions,
                unit="ms",
                better="lower",
                references=[f"{name}, {label}" for name in (REFERENCE, SOAP) if name in names],
                settings={"tensors": len(shapes), "coordinates": sum(map(math.prod, shapes))},
            )
        )
    found.add(_memory(options, 10, options.pick(1_000_000, 10_000)))
    return found


def networks(quick: bool) -> dict[str, Shapes]:
    """Shapes of tensors, by what they are."""
    if quick:
        return {f"{count} × {size}": matrices(count, size) for count, size in ((2, 100), (4, 50))}
    width = 128
    block = [(3 * width, width), (3 * width,), (width, width), (width,)]
    block += [(4 * width, width), (4 * width,), (width, 4 * width), (width,), *4 * [(width,)]]
    return {
        "10 × 100,000": matrices(10, 100_000),
        "100 × 10,000": matrices(100, 10_000),
        "MLP 784 × 100 × 10": [(100, 784), (100,), (10, 100), (10,)],
        "2 × transformer block of 128": 2 * block,
    }


def matrices(count: int, size: int) -> Shapes:
    """Matrices of up to 100 rows."""
    rows = min(100, size // 5)
    return count * [(rows, size // rows)]


def optimizer(name: str, params: list[torch.Tensor]) -> torch.optim.Optimizer:
    """A contestant."""
    if name == REFERENCE:
        return torch.optim.Adam(params, foreach=True)
    if name == OTHERS[0]:
        return torch.optim.AdamW(params, fused=True)
    if name == OTHERS[1]:
        return torch.optim.Muon(params)
    if name == SOAP:
        import pytorch_optimizer

        return pytorch_optimizer.SOAP(params, precondition_frequency=10)
    from ph_l2o.optim import PortHamiltonian

    pretrained = "kronecker" if "kronecker" in name else "default"
    return PortHamiltonian(params, pretrained=pretrained, compile="compile" in name)


def parameters(shapes: Shapes) -> list[torch.Tensor]:
    """Tensors, with their gradients."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)
    return params


def taking_steps(name: str, shapes: Shapes) -> Callable[[], Any]:
    """What takes one step, after the first."""
    made = optimizer(name, parameters(shapes))
    with_loss = name in OURS and "no loss" not in name
    step = functools.partial(made.step, loss=torch.tensor(1.0)) if with_loss else made.step  # type: ignore[call-arg]
    step()
    return step


def timed(name: str, shapes: Shapes, steps: int) -> Callable[[], float]:
    """Milliseconds of `step()`."""
    make = functools.cache(lambda: taking_steps(name, shapes))

    def measure() -> float:
        step = make()
        began = time.perf_counter()
        for _ in range(steps):
            step()
        return 1e3 * (time.perf_counter() - began) / steps

    return measure


def _memory(options: Options, count: int, size: int) -> Found:
    """Peak beyond parameters and gradients, and what of it stays between steps, in buffers of the parameters' size."""
    found = Found()
    ours = [name for name in OURS if "no loss" not in name and not (options.quick and "compile" in name)]
    for name in (REFERENCE, *ours):
        say(f"  memory of {name}")
        question = {"name": name, "count": count, "size": size}
        answers = [fresh.ask("probe_drop_in", question, threads=1) for _ in range(options.pick(options.repetitions, 1))]
        for what in ("peak", "state"):
            values = [float(answer[what]) for answer in answers]
            settings = {"tensors": count, "coordinates_each": size}
            title = f"{'peak of step' if what == 'peak' else 'between steps'}, {name}"
            found.entries.append(entry(title, values, unit="buffers", better="lower", settings=settings))
    return found
