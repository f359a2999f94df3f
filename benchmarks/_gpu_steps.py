"""Steps of optimizers on a device: their time, memory and waits, on tensors of the shapes of transformers."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import _measure
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ph_l2o.optim import PortHamiltonian, drop_in_port_hamiltonian
from ph_l2o.port_hamiltonian.kernels import Plain

WARM_UP = 10  # steps, after which bases are renewed at a steady rate
PERIOD = 10  # steps between renewals of bases
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
Step = Callable[[], Any]


class MuonAndAdamW:
    """`torch.optim.Muon` for matrices, AdamW for the rest, as is usual."""

    def __init__(self, params: Sequence[Tensor]):
        matrices = [p for p in params if p.ndim == 2]
        others = [p for p in params if p.ndim != 2]
        self.both = torch.optim.Muon(matrices), torch.optim.AdamW(others, foreach=True)
        self.state = {**self.both[0].state}

    def step(self) -> None:
        for optimizer in self.both:
            optimizer.step()
        self.state = {**self.both[0].state, **self.both[1].state}


class PlainSteps(PortHamiltonian):
    """Steps by plain operations, also where Triton's passes are taken otherwise."""

    def step(self, *args: Any, **kwargs: Any) -> Any:
        with mock.patch.object(drop_in_port_hamiltonian, "passes_for", lambda *_: Plain):
            return super().step(*args, **kwargs)


MAKE: dict[str, Callable[[Any], Any]] = {
    "adamw, foreach": lambda p: torch.optim.AdamW(p, foreach=True),
    "adamw, fused": lambda p: torch.optim.AdamW(p, fused=True),
    "muon": MuonAndAdamW,
    "default": PortHamiltonian,
    "default, plain operations": PlainSteps,
    "kronecker": lambda p: PortHamiltonian(p, pretrained="kronecker"),
}


def shapes(width: int, depth: int) -> list[tuple[int, ...]]:
    """Of a transformer's blocks: attention, the two layers after it, two norms."""
    block = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width), (width,), (width,)]
    return block * depth


def tensors(width: int, depth: int, device: torch.device) -> list[Tensor]:
    """Parameters with gradients."""
    torch.manual_seed(0)
    params: list[Tensor] = [
        torch.nn.Parameter(0.02 * torch.randn(shape, device=device)) for shape in shapes(width, depth)
    ]
    for p in params:
        p.grad = 0.01 * torch.randn_like(p)
    return params


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def step_times(device: torch.device, size: tuple[int, int], names: Sequence[str], repetitions: int) -> dict[str, Any]:
    """Milliseconds of `step()`, in turns, and bytes of its state and of what it needs for a while, per weight."""
    found: dict[str, Any] = {"memory": {}, "failed": {}}
    contestants, count = dict[str, Callable[[], float]](), 0
    for name in names:
        try:
            params = tensors(*size, device)
            count = sum(p.numel() for p in params)
            optimizer = MAKE[name](params)
            found["memory"][name] = _memory(optimizer, device, count)
            contestants[name] = _timed(optimizer.step, device)
        except Exception as error:  # the others are measured all the same
            found["failed"][name] = reason(error)
    if not contestants:
        return found
    references = ["adamw, foreach"] if "adamw, foreach" in contestants else []
    entries = _measure.contest(contestants, repetitions, unit="ms", better="lower", references=references).entries
    return {"weights": count, "tensors": len(shapes(*size)), **found, "entries": entries}


def _timed(step: Step, device: torch.device) -> Callable[[], float]:
    def measure() -> float:
        wait(device)
        began = time.perf_counter()
        for _ in range(PERIOD):
            step()
        wait(device)
        return (time.perf_counter() - began) / PERIOD * 1e3

    return measure


def _memory(optimizer: Any, device: torch.device, count: int) -> dict[str, float | None]:
    """Warm up; bytes per weight of the state, and of the most that a step allocates beside all that stays."""
    for _ in range(WARM_UP):
        optimizer.step()
    held = {x.data_ptr(): x for memory in optimizer.state.values() for x in memory.values() if isinstance(x, Tensor)}
    found: dict[str, float | None] = {"state": sum(x.nbytes for x in held.values()) / count, "transient": None}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        for _ in range(PERIOD):
            optimizer.step()
        found["transient"] = (torch.cuda.max_memory_allocated(device) - before) / count
    return found


def waits(device: torch.device, size: tuple[int, int]) -> dict[str, Any]:
    """For each step: how often the host waits, as torch and CUDA tell; launches; what the device does, and how long."""
    found = {}
    for name in ("adamw, foreach", "default", "default, plain operations", "kronecker"):
        params = tensors(*size, device)
        optimizer = MAKE[name](params)
        for _ in range(WARM_UP):
            optimizer.step()
        found[name] = {"waits": _warned(optimizer.step, device), **_profiled(optimizer.step, device)}
    return found


def _warned(step: Step, device: torch.device) -> float | None:
    """Operations of torch that wait, by its own warnings."""
    if device.type != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(PERIOD):
                step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught) / PERIOD


def _profiled(step: Step, device: torch.device) -> dict[str, Any]:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    wait(device)
    with profile(activities=activities) as profiler:
        for _ in range(PERIOD):
            step()
        wait(device)
    events = profiler.key_averages()
    work = [e for e in events if e.device_type.name == "CUDA" and not e.key.startswith("Optimizer.step#")]
    longest = sorted(work, key=lambda e: e.self_device_time_total, reverse=True)[:8]
    return {
        "launches": sum(e.count for e in events if e.key in LAUNCHES) / PERIOD,
        "stream waits": sum(e.count for e in events if e.key == "cudaStreamSynchronize") / PERIOD,
        "device operations": sum(e.count for e in work) / PERIOD,
        "device ms": sum(e.self_device_time_total for e in work) / PERIOD / 1e3,
        "longest, ms": {e.key[:80]: e.self_device_time_total / PERIOD / 1e3 for e in longest},
    }


def orthogonal(device: torch.device, size: int) -> dict[str, Any]:
    """Milliseconds, in turns, of what makes new bases of 6 factors together, and how far they are from orthogonal."""
    torch.manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(6, size, size, dtype=torch.float64)).Q
    near = torch.linalg.qr(vectors + 0.01 / size**0.5 * torch.randn(6, size, size, dtype=torch.float64)).Q
    factor = vectors * torch.logspace(0, -5, size, dtype=torch.float64) @ vectors.mT
    power = (factor @ near).float().to(device)
    ways: dict[str, Callable[[], Tensor]] = {
        "qr": lambda: torch.linalg.qr(power).Q,
        "qr, one by one": lambda: torch.stack([torch.linalg.qr(x).Q for x in power]),
        "cholesky, float64": lambda: _by_cholesky(power.double()).float(),
        "cholesky, float32": lambda: _by_cholesky(power),
    }
    times = _measure.contest({name: _timed(way, device) for name, way in ways.items()}, 3, unit="ms", better="lower")
    eye = torch.eye(size, device=device)
    distances = {name: float((q.mT @ q - eye).abs().max()) for name, q in ((name, way()) for name, way in ways.items())}
    return {"side": size, "distances": distances, "entries": times.entries}


def _by_cholesky(x: Tensor) -> Tensor:
    """Q of QR with a positive diagonal of R, in two rounds (Yamamoto et al. 2015, "CholeskyQR2")."""
    x = x / x.norm(dim=1, keepdim=True)
    for _ in range(2):
        lower = torch.linalg.cholesky_ex(x.mT @ x).L
        x = torch.linalg.solve_triangular(lower.mT, x, upper=True, left=False)
    return x


def reason(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
