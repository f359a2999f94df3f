"""One step of the drop-in optimizer on 10⁶ parameters beside torch.optim.Adam, and what it needs of memory."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from _measure import Found, contest, entry, say

from suite import fresh
from suite.options import Options

REFERENCE = "torch.optim.Adam(foreach=True)"
CONTESTANTS = (REFERENCE, "plain", "plain, no loss", "compile=True", "compile=True, no loss", "kronecker")


def measured(options: Options) -> Found:
    """Time for few large tensors and for many small ones; memory of 10⁷ parameters, each in a process of its own."""
    found = Found()
    shapes = ((2, 100), (4, 50)) if options.quick else ((10, 100_000), (100, 10_000))
    for count, size in shapes:
        label = f"{count} × {size:,}"
        say(f" {label}")
        names = [name for name in CONTESTANTS if not (options.quick and name.startswith("compile"))]
        steps = options.pick(10, 1)
        found.add(
            contest(
                {f"{name}, {label}": timed(name, count, size, steps) for name in names},
                options.repetitions,
                unit="ms",
                better="lower",
                references=(f"{REFERENCE}, {label}",),
                settings={"tensors": count, "coordinates_each": size},
            )
        )
    found.add(_memory(options, 10, options.pick(1_000_000, 10_000)))
    return found


def optimizer(name: str, params: list[torch.Tensor]) -> torch.optim.Optimizer:
    """A contestant."""
    if name == REFERENCE:
        return torch.optim.Adam(params, foreach=True)
    from ph_l2o.optim import PortHamiltonian

    pretrained = "kronecker" if name == "kronecker" else "default"
    return PortHamiltonian(params, pretrained=pretrained, compile=name.startswith("compile"))


def parameters(count: int, size: int) -> list[torch.Tensor]:
    """Matrices, with their gradients."""
    generator = torch.Generator().manual_seed(0)
    shape = (min(100, size // 5), -1)
    params = [torch.randn(size, generator=generator).view(shape).requires_grad_() for _ in range(count)]
    for p in params:
        p.grad = torch.randn(size, generator=generator).view(shape)
    return params


def taking_steps(name: str, count: int, size: int) -> Callable[[], Any]:
    """What takes one step, after the first."""
    made = optimizer(name, parameters(count, size))
    with_loss = name != REFERENCE and "no loss" not in name
    step = functools.partial(made.step, loss=torch.tensor(1.0)) if with_loss else made.step  # type: ignore[call-arg]
    step()
    return step


def timed(name: str, count: int, size: int, steps: int) -> Callable[[], float]:
    """Milliseconds of `step()`."""
    make = functools.cache(lambda: taking_steps(name, count, size))

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
    names = [name for name in CONTESTANTS if "no loss" not in name and not (options.quick and "compile" in name)]
    for name in names:
        say(f"  memory of {name}")
        question = {"name": name, "count": count, "size": size}
        answers = [fresh.ask("probe_drop_in", question, threads=1) for _ in range(options.pick(options.repetitions, 1))]
        for what in ("peak", "state"):
            values = [float(answer[what]) for answer in answers]
            settings = {"tensors": count, "coordinates_each": size}
            title = f"{'peak of step' if what == 'peak' else 'between steps'}, {name}"
            found.entries.append(entry(title, values, unit="buffers", better="lower", settings=settings))
    return found
