"""Which passes a step takes: Triton's on GPUs, compiled loops on CPUs where asked for, else plain operations.

Triton is imported, and its kernels are compiled, when a tensor on a GPU is first stepped.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch

from ph_l2o.lazy import resolve
from ph_l2o.port_hamiltonian.blocks import Array, Block
from ph_l2o.port_hamiltonian.fused import Fused
from ph_l2o.port_hamiltonian.kernels import Plain

_LEAST_CAPABILITY = (7, 0)  # of a GPU for which Triton compiles


class Passes(Protocol):
    """The passes of a step; see `kernels.Plain`."""

    def largest(self) -> float: ...
    def absorb(self, factor: float, weights: Array) -> Array: ...
    def predict(self, factor: float, numbers: Array, pulls: bool) -> Array: ...
    def move(self, factor: float, predicted: Array, numbers: Array, pulls: bool) -> Array: ...


MakePasses = Callable[[Sequence[Block]], Passes]


def passes_for(devices: Iterable[torch.device], compiled: bool) -> MakePasses:
    """The passes for tensors on these devices.

    Args:
        devices: Of all tensors of the step, at least one.
        compiled: Whether those on CPUs take compiled loops.
    """
    found = set(devices)
    if all(device.type == "cpu" for device in found):
        return Fused if compiled else Plain
    if all(device.type == "cuda" and takes_triton(device) for device in found):
        return resolve("ph_l2o.port_hamiltonian.triton_passes:Triton")
    return Plain


@functools.cache
def takes_triton(device: torch.device) -> bool:
    """Whether a GPU takes Triton's passes: Triton is installed, and compiles for it.

    Where it is installed and does not, as without a C compiler, a warning says so, once.
    """
    if importlib.util.find_spec("triton") is None or torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
        return False
    try:
        return resolve("ph_l2o.port_hamiltonian.triton_passes:works")(device)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        text = f"PortHamiltonian: Triton fails on {device} ({type(error).__name__}: {reason}); steps there are slower"
        warnings.warn(text, stacklevel=2)
        return False
