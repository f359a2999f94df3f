# pyright: reportArgumentType=false, reportOperatorIssue=false, reportMissingImports=false
"""The three passes over the coordinates on a GPU: each is one launch over all tensors of a device and type.

A program of a launch takes a chunk of a tensor. It finds its tensor's pointers and numbers in tables on the device and
leaves its sums there, which a second launch adds up to those of tensors, always in the same order; they are float64.

# X
This module imports Triton, which comes with torch for GPUs; `passes.py` says where it is used.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ph_l2o.port_hamiltonian.blocks import Array, Block

LENGTH = 8192  # coordinates of a chunk
_BYTES = 4096  # of one buffer that a program takes at once
_ROWS = 256  # chunks whose sums are added at once
_ALIGNED = 16  # where all pointers and all numbers of coordinates are multiples of it, several are read at once
_TYPES = {torch.float32: tl.float32, torch.float64: tl.float64}
_POINTERS = tl.constexpr(8)  # columns of the table: pointers as in `_pointers`, and the number of coordinates
_SUMS = tl.constexpr(8)  # columns of the table of sums, of which a pass fills the first


class Triton:
    """The passes of `kernels.Plain` by Triton, without transient buffers.

    Args:
        blocks: The tensors of the step, of float32 or float64, each flat and dense.

    Raises:
        ValueError: If a tensor is of another kind.
    """

    def __init__(self, blocks: Sequence[Block]):
        self.blocks = blocks  # which the pointers are of
        self.count, kinds = len(blocks), dict[tuple[torch.device, torch.dtype], list[int]]()
        for place, block in enumerate(blocks):
            _check(block)
            kinds.setdefault((block.theta.device, block.theta.dtype), []).append(place)
        self.groups = [_Group(*kind, [blocks[k] for k in places], places) for kind, places in kinds.items()]

    def largest(self) -> float:
        """See `Plain.largest`."""
        found = [group.launch(_largest)[:, 0].amax() for group in self.groups]
        return float(np.max([x.item() for x in found]))  # NaN, if any is

    def absorb(self, factor: float, weights: Array) -> Array:
        """See `Plain.absorb`."""
        return self._sums(_absorb, 7, factor, weights)

    def predict(self, factor: float, numbers: Array, pulls: bool) -> Array:
        """See `Plain.predict`."""
        return self._sums(_predict, 3, factor, numbers, PULLS=pulls)

    def move(self, factor: float, predicted: Array, numbers: Array, pulls: bool) -> Array:
        """See `Plain.move`."""
        return self._sums(_move, 2, factor, np.concatenate([predicted, numbers], 1), PULLS=pulls)

    def _sums(self, kernel: Any, columns: int, factor: float, numbers: Array, **constants: bool) -> Array:
        table = np.concatenate([numbers, np.full((self.count, 1), factor)], 1)
        found = [group.fold(group.launch(kernel, table, **constants)) for group in self.groups]
        if len(found) == 1:
            return found[0].cpu().numpy()[:, :columns]
        sums = np.empty((self.count, columns))
        for group, of_group in zip(self.groups, found, strict=True):
            sums[group.places] = of_group.cpu().numpy()[:, :columns]
        return sums


class _Group:
    """Tensors of one device and type, with the tables of their pointers and chunks."""

    def __init__(self, device: torch.device, dtype: torch.dtype, blocks: Sequence[Block], places: list[int]):
        self.device, self.places = device, places
        sizes = tuple(block.theta.numel() for block in blocks)
        table = np.array([x for block, size in zip(blocks, sizes, strict=True) for x in (*_pointers(block), size)])
        self.pointers = _sent(table, device)
        self.chunks, self.starts = _chunks(sizes, device)
        self.constants: dict[str, Any] = {
            "DTYPE": _TYPES[dtype],
            "ALIGNED": bool(np.bitwise_or.reduce(table) % _ALIGNED == 0),
            "LENGTH": LENGTH,
            "STEP": _BYTES // dtype.itemsize,
        }

    def launch(self, kernel: Any, *numbers: Array, **constants: bool) -> Tensor:
        """Sums of the chunks, `(C, 8)`, of which a pass fills the first; `numbers` are of all tensors, `(T, k)`."""
        tables = [_sent(table[self.places], self.device) for table in numbers]
        count = len(self.chunks)
        out = torch.empty((count, _SUMS.value), dtype=torch.float64, device=self.device)
        with self._current():
            kernel[(count,)](self.chunks, self.pointers, *tables, out, **self.constants, **constants)
        return out

    def fold(self, sums: Tensor) -> Tensor:
        """From sums of chunks to those of tensors, `(T, 8)`."""
        count = len(self.places)
        if count == len(self.chunks):
            return sums
        out = torch.empty((count, _SUMS.value), dtype=torch.float64, device=self.device)
        with self._current():
            _fold[(count,)](self.starts, sums, out, ROWS=_ROWS)
        return out

    def _current(self) -> AbstractContextManager[Any]:
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()


def works(device: torch.device) -> bool:
    """True; raises an error where Triton cannot compile or launch a pass on the device."""
    x = torch.zeros(1, device=device)
    Triton([Block("", (1,), x, x, {}, (x,) * 4, 0.0, 0.0)]).largest()
    return True


def _pointers(block: Block) -> list[int]:
    return [x.data_ptr() for x in (block.grad, block.theta, block.home, *block.flats)]


def _sent(table: Array | np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """A table on the device, without a wait."""
    found = torch.from_numpy(table)
    return found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found


@functools.lru_cache(maxsize=64)
def _chunks(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """For each chunk its tensor and its number in that, `(C, 2)`; for each tensor its first chunk, `(T + 1,)`."""
    counts = [-(-size // LENGTH) for size in sizes]
    starts = np.concatenate([[0], np.cumsum(counts)])
    owners = np.repeat(np.arange(len(sizes)), counts)
    chunks = np.stack([owners, np.arange(starts[-1]) - starts[owners]], 1)
    return torch.from_numpy(chunks).to(device), torch.from_numpy(starts).to(device)


def _check(block: Block) -> None:
    """Raise ValueError unless the kernels can read and write a tensor's buffers as they lie in memory.

    The four that are remembered are of one size and type, and dense, since views of them are flat.
    """
    theta, grad, kept = block.theta, block.grad, block.flats[0]
    size, dtype = theta.numel(), theta.dtype
    alike = dtype in _TYPES and dtype is grad.dtype is kept.dtype and size == grad.numel() == kept.numel()
    if not (alike and theta.is_contiguous() and grad.is_contiguous() and theta.device == grad.device == kept.device):
        text = "; ".join(f"{x.numel()} numbers of {x.dtype} on {x.device}" for x in (theta, grad, kept))
        raise ValueError(
            f"tensor {block.name}: θ, its gradient and what is remembered of it are {text}; must be dense and alike, "
            "of float32 or float64"
        )


@triton.jit
def _chunk(chunks, pointers, LENGTH: tl.constexpr, ALIGNED: tl.constexpr):
    """The row of pointers, the row of numbers, the first coordinate, and how many there are."""
    number = tl.program_id(0)
    tensor = tl.load(chunks + 2 * number)
    first = tl.load(chunks + 2 * number + 1) * LENGTH
    row = pointers + tensor * _POINTERS
    count = tl.minimum(tl.load(row + _POINTERS - 1) - first, LENGTH).to(tl.int32)
    if ALIGNED:
        count = tl.multiple_of(count, 16)
    return row, tensor, first, count


@triton.jit
def _buffer(row, column: tl.constexpr, first, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Where a chunk of a buffer lies."""
    pointer = tl.load(row + column).to(tl.pointer_type(DTYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer + first


@triton.jit
def _number(numbers, column: tl.constexpr, DTYPE: tl.constexpr):
    return tl.load(numbers + column).to(DTYPE)


@triton.jit
def _leave(out, column: tl.constexpr, sums):
    tl.store(out + tl.program_id(0) * _SUMS + column, tl.sum(sums, 0).to(tl.float64))


@triton.jit
def _scale(second, floor):
    return tl.sqrt(tl.rsqrt(second + floor))


@triton.jit
def _largest(
    chunks, pointers, out,
    DTYPE: tl.constexpr, ALIGNED: tl.constexpr, LENGTH: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """The largest absolute value, or NaN if anything is not finite."""
    row, _, first, count = _chunk(chunks, pointers, LENGTH, ALIGNED)
    grads = _buffer(row, 0, first, DTYPE, ALIGNED)
    most, none = tl.zeros((STEP,), DTYPE), tl.zeros((STEP,), DTYPE)
    for begin in range(0, count, STEP):
        i = begin + tl.arange(0, STEP)
        g = tl.load(grads + i, mask=i < count, other=0.0)
        most = tl.maximum(most, tl.abs(g))
        none += g * 0.0
    tl.store(out + tl.program_id(0) * _SUMS, (tl.max(most, 0) + tl.sum(none, 0)).to(tl.float64))


@triton.jit
def _absorb(
    chunks, pointers, numbers, out,
    DTYPE: tl.constexpr, ALIGNED: tl.constexpr, LENGTH: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Numbers: weights of g in both averages and of g² in v, and the factor."""
    row, tensor, first, count = _chunk(chunks, pointers, LENGTH, ALIGNED)
    grads, homes = _buffer(row, 0, first, DTYPE, ALIGNED), _buffer(row, 2, first, DTYPE, ALIGNED)
    fasts, slows = _buffer(row, 3, first, DTYPE, ALIGNED), _buffer(row, 4, first, DTYPE, ALIGNED)
    seconds, momenta = _buffer(row, 5, first, DTYPE, ALIGNED), _buffer(row, 6, first, DTYPE, ALIGNED)
    numbers += tensor * 4
    of_fast, of_slow = _number(numbers, 0, DTYPE), _number(numbers, 1, DTYPE)
    of_second, rest = _number(numbers, 2, DTYPE), (1.0 - tl.load(numbers + 2)).to(DTYPE)
    factor = _number(numbers, 3, DTYPE)
    gg, ff, ss = tl.zeros((STEP,), DTYPE), tl.zeros((STEP,), DTYPE), tl.zeros((STEP,), DTYPE)
    tt, gf, gs = tl.zeros((STEP,), DTYPE), tl.zeros((STEP,), DTYPE), tl.zeros((STEP,), DTYPE)
    gp = tl.zeros((STEP,), DTYPE)
    for begin in range(0, count, STEP):
        i = begin + tl.arange(0, STEP)
        inside = i < count
        g = tl.load(grads + i, mask=inside, other=0.0) * factor
        fast = tl.load(fasts + i, mask=inside, other=0.0)
        slow = tl.load(slows + i, mask=inside, other=0.0)
        second = tl.load(seconds + i, mask=inside, other=0.0)
        pi = tl.load(momenta + i, mask=inside, other=0.0)
        theta = tl.load(homes + i, mask=inside, other=0.0)
        fast += of_fast * (g - fast)
        slow += of_slow * (g - slow)
        tl.store(fasts + i, fast, mask=inside)
        tl.store(slows + i, slow, mask=inside)
        tl.store(seconds + i, rest * second + of_second * (g * g), mask=inside)
        gg += g * g
        ff += fast * fast
        ss += slow * slow
        tt += theta * theta
        gf += g * fast
        gs += g * slow
        gp += g * pi
    _leave(out, 0, gg)
    _leave(out, 1, ff)
    _leave(out, 2, ss)
    _leave(out, 3, tt)
    _leave(out, 4, gf)
    _leave(out, 5, gs)
    _leave(out, 6, gp)


@triton.jit
def _predict(
    chunks, pointers, numbers, out,
    DTYPE: tl.constexpr, ALIGNED: tl.constexpr, LENGTH: tl.constexpr, STEP: tl.constexpr, PULLS: tl.constexpr,
):  # fmt: skip
    """Numbers: floor, the average's share in ĝ, and the factor."""
    row, tensor, first, count = _chunk(chunks, pointers, LENGTH, ALIGNED)
    grads, thetas = _buffer(row, 0, first, DTYPE, ALIGNED), _buffer(row, 1, first, DTYPE, ALIGNED)
    fasts, seconds = _buffer(row, 3, first, DTYPE, ALIGNED), _buffer(row, 5, first, DTYPE, ALIGNED)
    momenta = _buffer(row, 6, first, DTYPE, ALIGNED)
    numbers += tensor * 3
    floor, mix = _number(numbers, 0, DTYPE), _number(numbers, 1, DTYPE)
    factor = _number(numbers, 2, DTYPE)
    hh, hp, ht = tl.zeros((STEP,), DTYPE), tl.zeros((STEP,), DTYPE), tl.zeros((STEP,), DTYPE)
    for begin in range(0, count, STEP):
        i = begin + tl.arange(0, STEP)
        inside = i < count
        g = tl.load(grads + i, mask=inside, other=0.0) * factor
        fast = tl.load(fasts + i, mask=inside, other=0.0)
        q = _scale(tl.load(seconds + i, mask=inside, other=1.0), floor)
        h = q * (g + mix * (fast - g))
        hh += h * h
        hp += h * tl.load(momenta + i, mask=inside, other=0.0)
        if PULLS:
            ht += h * (q * tl.load(thetas + i, mask=inside, other=0.0))
    _leave(out, 0, hh)
    _leave(out, 1, hp)
    _leave(out, 2, ht)


@triton.jit
def _move(
    chunks, pointers, numbers, out,
    DTYPE: tl.constexpr, ALIGNED: tl.constexpr, LENGTH: tl.constexpr, STEP: tl.constexpr, PULLS: tl.constexpr,
):  # fmt: skip
    """Numbers: those of `_predict`, keep, force, spring and rate, and the factor.

    θ need not be finite where there is no spring; where it is turned there it begins at 0.
    """
    row, tensor, first, count = _chunk(chunks, pointers, LENGTH, ALIGNED)
    grads, thetas = _buffer(row, 0, first, DTYPE, ALIGNED), _buffer(row, 1, first, DTYPE, ALIGNED)
    fasts, seconds = _buffer(row, 3, first, DTYPE, ALIGNED), _buffer(row, 5, first, DTYPE, ALIGNED)
    momenta = _buffer(row, 6, first, DTYPE, ALIGNED)
    starts_at_theta = PULLS or tl.load(row + 1) == tl.load(row + 2)
    numbers += tensor * 7
    floor, mix = _number(numbers, 0, DTYPE), _number(numbers, 1, DTYPE)
    keep, force = _number(numbers, 2, DTYPE), _number(numbers, 3, DTYPE)
    spring, rate = _number(numbers, 4, DTYPE), _number(numbers, 5, DTYPE)
    factor = _number(numbers, 6, DTYPE)
    pp, tt = tl.zeros((STEP,), DTYPE), tl.zeros((STEP,), DTYPE)
    for begin in range(0, count, STEP):
        i = begin + tl.arange(0, STEP)
        inside = i < count
        g = tl.load(grads + i, mask=inside, other=0.0) * factor
        fast = tl.load(fasts + i, mask=inside, other=0.0)
        q = _scale(tl.load(seconds + i, mask=inside, other=1.0), floor)
        theta = tl.load(thetas + i, mask=inside & starts_at_theta, other=0.0)
        pi = keep * tl.load(momenta + i, mask=inside, other=0.0) - (force * q) * (g + mix * (fast - g))
        if PULLS:
            pi -= tl.where(spring != 0, (spring * q) * theta, 0.0)
        theta += (rate * q) * pi
        tl.store(momenta + i, pi, mask=inside)
        tl.store(thetas + i, theta, mask=inside)
        pp += tl.where(inside, pi * pi, 0.0)
        tt += tl.where(inside, theta * theta, 0.0)
    _leave(out, 0, pp)
    _leave(out, 1, tt)


@triton.jit
def _fold(starts, sums, out, ROWS: tl.constexpr):
    """Sums of a tensor's chunks, always in the same order."""
    tensor, column = tl.program_id(0), tl.arange(0, _SUMS)
    end = tl.load(starts + tensor + 1)
    found = tl.zeros((ROWS, _SUMS), tl.float64)
    for begin in range(tl.load(starts + tensor), end, ROWS):
        rows = begin + tl.arange(0, ROWS)
        place = rows[:, None] * _SUMS + column[None, :]
        found += tl.load(sums + place, mask=(rows < end)[:, None], other=0.0)
    tl.store(out + tensor * _SUMS + column, tl.sum(found, 0))
