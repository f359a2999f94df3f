"""One update of 10⁶ parameters without meta-gradient: each optimizer beside those of torch.optim."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from _measure import Found, contest, say

from ph_l2o.optimizers import LearnedOptimizer
from ph_l2o.params import Params
from suite import cases
from suite.options import Options

REFERENCES: dict[str, Callable[[list[torch.Tensor]], torch.optim.Optimizer]] = {
    "torch.optim.Adam(foreach=True)": lambda p: torch.optim.Adam(p, foreach=True),
    "torch.optim.Adam(fused=True)": lambda p: torch.optim.Adam(p, fused=True),
    "torch.optim.SGD": lambda p: torch.optim.SGD(p, lr=0.1),
}


def measured(options: Options) -> Found:
    """Few large tensors, and many small ones."""
    found = Found()
    shapes = ((2, 100), (4, 50)) if options.quick else ((10, 100_000), (100, 10_000))
    for count, size in shapes:
        label = f"{count} × {size:,}"
        say(f" {label}")
        contestants = {f"{name}, {label}": step_of_torch(make, count, size) for name, make in REFERENCES.items()}
        references = tuple(contestants)
        contestants |= {
            f"{name}, {label}": step_of_ours(name, count, size, 1 if name == "lstm" or options.quick else 10)
            for name in cases.OPTIMIZERS
        }
        settings = {"tensors": count, "coordinates_each": size}
        found.add(
            contest(
                contestants, options.repetitions, unit="ms", better="lower", references=references, settings=settings
            )
        )
    return found


def _tensors(count: int, size: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator) for _ in range(count)]


def step_of_torch(
    make: Callable[[list[torch.Tensor]], torch.optim.Optimizer], count: int, size: int, steps: int = 10
) -> Callable[[], float]:
    """Milliseconds of `step()`."""
    params = [p.requires_grad_() for p in _tensors(count, size, 0)]
    for p, grad in zip(params, _tensors(count, size, 1), strict=True):
        p.grad = grad
    optimizer = make(params)

    def measure() -> float:
        began = time.perf_counter()
        for _ in range(steps):
            optimizer.step()
        return 1e3 * (time.perf_counter() - began) / steps

    return measure


def step_of_ours(name: str, count: int, size: int, steps: int) -> Callable[[], float]:
    """Milliseconds of `update`, without a graph; the same step is taken again and again."""

    @functools.cache
    def start() -> tuple[LearnedOptimizer, tuple[Any, ...]]:
        optimizer = cases.optimizer(name)
        params, grads = (
            Params.from_tensors({str(k): x[None] for k, x in enumerate(_tensors(count, size, seed))}) for seed in (0, 1)
        )
        return optimizer, (params, grads, torch.ones(1), optimizer.init(params))

    @torch.no_grad()
    def measure() -> float:
        optimizer, arguments = start()
        began = time.perf_counter()
        for _ in range(steps):
            optimizer.update(*arguments)
        return 1e3 * (time.perf_counter() - began) / steps

    return measure
