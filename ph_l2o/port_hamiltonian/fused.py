"""The three passes over the coordinates as compiled loops, each of which reads and writes every buffer once.

The loops are C++, compiled by the machine's compiler when they are first used, in about a second, and kept between
processes. They serve all sizes and settings; nothing is compiled anew when these change.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ph_l2o import native
from ph_l2o.errors import CompilerError
from ph_l2o.port_hamiltonian.blocks import Array, Block
from ph_l2o.port_hamiltonian.kernels import over_tensors

SOURCE = Path(__file__).with_name("fused.cpp")
_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-march=native", "-fno-math-errno", "-fno-trapping-math",
          "-ffp-contract=fast", "-fopenmp-simd")  # fmt: skip
_LENGTH = 2**16  # coordinates that one thread takes at once, of several threads
_NAMES = {torch.float32: "f32", torch.float64: "f64"}


class Fused:
    """The passes of `kernels.Plain`, compiled; for tensors on the CPU, without transient buffers.

    Args:
        blocks: The tensors of the step.

    Raises:
        CompilerError: If there is no C++ compiler, or it fails.
    """

    def __init__(self, blocks: Sequence[Block]):
        self.blocks, self.library = blocks, load_library()
        for block in blocks:
            _check(block)
        threads = torch.get_num_threads()
        length = _LENGTH if threads > 1 else 2**62
        ranges = [
            (k, first, min(length, block.theta.numel() - first))
            for k, block in enumerate(blocks)
            for first in range(0, block.theta.numel(), length)
        ]
        self.owners = [k for k, _, _ in ranges]
        jobs = [(suffix, [n for n, k in enumerate(self.owners) if blocks[k].theta.dtype == dtype][first::threads])
                for dtype, suffix in _NAMES.items() for first in range(threads)]  # fmt: skip
        self.jobs = [(suffix, *self._arguments(chosen, ranges)) for suffix, chosen in jobs if chosen]

    def largest(self) -> float:
        """See `Plain.largest`."""
        return float(self._run("largest", 1.0, np.zeros((len(self.blocks), 1)), 1).max())  # NaN, if any is

    def absorb(self, factor: float, weights: Array) -> Array:
        """See `Plain.absorb`."""
        return self._over_tensors(self._run("absorb", factor, weights, 7))

    def predict(self, factor: float, numbers: Array, pulls: bool) -> Array:
        """See `Plain.predict`."""
        return self._over_tensors(self._run("predict_pulled" if pulls else "predict", factor, numbers, 3))

    def move(self, factor: float, predicted: Array, numbers: Array, pulls: bool) -> Array:
        """See `Plain.move`."""
        return self._over_tensors(
            self._run("move_pulled" if pulls else "move", factor, np.concatenate([predicted, numbers], 1), 2)
        )

    def _over_tensors(self, sums: Array) -> Array:
        return over_tensors(sums, self.owners, len(self.blocks))

    def _arguments(self, chosen: list[int], ranges: list[tuple[int, int, int]]) -> tuple[Any, ...]:
        """Count; where results go, which numbers are meant, pointers, sizes."""
        pointers = list[int]()
        for n in chosen:
            k, first, _ = ranges[n]
            block, skipped = self.blocks[k], first * self.blocks[k].theta.element_size()
            pointers += [x.data_ptr() + skipped for x in (block.grad, block.theta, block.home, *block.flats)]
        count = len(chosen)
        integers = ctypes.c_int64 * count
        return (
            count, integers(*chosen), integers(*(self.owners[n] for n in chosen)),
            (ctypes.c_void_p * len(pointers))(*pointers), integers(*(ranges[n][2] for n in chosen)),
        )  # fmt: skip

    def _run(self, name: str, factor: float, numbers: Array, columns: int) -> Array:
        out, numbers = np.zeros((len(self.owners), columns)), np.ascontiguousarray(numbers)
        last = (ctypes.c_double(factor), ctypes.c_void_p(numbers.ctypes.data), ctypes.c_void_p(out.ctypes.data))

        def work(job: tuple[Any, ...]) -> None:
            suffix, *first = job
            getattr(self.library, f"{name}_{suffix}")(*first, *last)

        if len(self.jobs) == 1:
            work(self.jobs[0])
        else:  # ctypes lets other threads run meanwhile
            list(_pool(torch.get_num_threads()).map(work, self.jobs))
        return out


def _check(block: Block) -> None:
    """Raise ValueError unless the loops can read and write a tensor's buffers as they lie in memory.

    The four that are remembered are of one size and type, and dense, since views of them are flat.
    """
    theta, grad, kept = block.home, block.grad, block.flats[0]
    size, dtype = theta.numel(), theta.dtype
    alike = size == grad.numel() == kept.numel() and dtype is grad.dtype is kept.dtype
    if not (alike and theta.is_contiguous() and grad.is_contiguous()):
        raise ValueError(
            f"compile=True: tensor {block.name} is {size} numbers of {dtype}, its gradient {grad.numel()} of "
            f"{grad.dtype}, and what is remembered of it {kept.numel()} of {kept.dtype}; leave compile at False"
        )


@functools.lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "ph_l2o")


@functools.cache
def load_library() -> ctypes.CDLL:
    """The loops, compiled if they are not yet.

    Raises:
        CompilerError: If there is no C++ compiler, or it fails.
    """
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    compiler = next((found for name in names if name and (found := shutil.which(name))), None)
    if compiler is None:
        raise CompilerError("compile=True: there is no C++ compiler; install g++ or clang++, or leave it at False")
    key = "\n".join([SOURCE.read_text(), compiler, *_FLAGS, native.processor()])
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    target = native.folder() / f"fused_{name}.so"
    if not target.exists():
        _build(compiler, target)
    try:
        return ctypes.CDLL(str(target))
    except OSError as error:
        raise CompilerError(f"compile=True: {target} cannot be loaded ({error}); remove it") from error


def _build(compiler: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        command = [compiler, *_FLAGS, str(SOURCE), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
            raise CompilerError(
                f"compile=True: {compiler} failed ({lines[0]}); set CXX to another, or leave it at False"
            )
        os.replace(made, target)  # whole, or not at all, if several processes compile at once
