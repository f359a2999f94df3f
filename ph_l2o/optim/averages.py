"""Averages of a drop-in's parameters, and how they are read out.

In the memory of each parameter, in torch.optim's `state`, lie `average`, `averaged`, of how many iterates it is, and
`average_lag`, the share that the average still has where the rest is the parameter as it is: while a parameter rests,
only these two numbers change, and they go into the average when it takes part again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from ph_l2o.optim.drop_in import DropIn
from ph_l2o.optimizers.averaged import share
from ph_l2o.port_hamiltonian.blocks import dtype_of

Memory = dict[str, Any]

AVERAGE, COUNT, LAG = "average", "averaged", "average_lag"


def shapes(p: Tensor) -> dict[str, tuple[int, ...] | None]:
    """Of what lies in a parameter's memory, by key; None for a number."""
    return {AVERAGE: tuple(p.shape), COUNT: None, LAG: None}


def begin(entries: Iterable[tuple[str, Tensor, Memory]]) -> list[tuple[Tensor, Memory]]:
    """Before a step: see that the memory of each parameter, given with its name, has an average.

    Returns:
        The parameters and their memories.

    Raises:
        ValueError: If an average does not fit its parameter any more.
    """
    found = list[tuple[Tensor, Memory]]()
    for name, p, memory in entries:
        if AVERAGE not in memory:
            average = p.detach().to(dtype_of(p), copy=True, memory_format=torch.contiguous_format)
            memory |= {AVERAGE: average, COUNT: 0, LAG: 1.0}
        elif p.grad is not None:
            memory |= {AVERAGE: _average(name, p, memory), LAG: 1.0}
        found.append((p, memory))
    return found


def advance(tensors: Iterable[tuple[Tensor, Memory]]) -> None:
    """After a step: take the newest iterates into the averages; see `ph_l2o.optimizers.Averaged`."""
    by_count = dict[int, tuple[list[Tensor], list[Tensor]]]()
    for p, memory in tensors:
        count = memory[COUNT] = memory[COUNT] + 1
        if p.grad is None:
            memory[LAG] *= 1 - share(count)
            continue
        averages, iterates = by_count.setdefault(count, ([], []))
        averages.append(memory[AVERAGE])
        iterates.append(p.detach().to(memory[AVERAGE].dtype))
    for count, (averages, iterates) in by_count.items():
        torch._foreach_lerp_(averages, iterates, share(count))  # type: ignore[attr-defined]


def _average(name: str, p: Tensor, memory: Memory) -> Tensor:
    """As it is now, where the parameter is and in the memory's type."""
    if memory[AVERAGE].shape != p.shape:
        raise ValueError(
            f"parameter {name} has shape {tuple(p.shape)} now, and its average {tuple(memory[AVERAGE].shape)}: put "
            "there what fits it, or delete it, del optimizer.state[p]"
        )
    average = memory[AVERAGE].to(p.device, dtype_of(p))
    return average if memory[LAG] == 1 else torch.lerp(p.detach().to(average.dtype), average, memory[LAG])


@contextmanager
def read_out(optimizer: DropIn, model: nn.Module | None, batches: Iterable[Any] | None) -> Iterator[None]:
    """See `ph_l2o.optim.PortHamiltonian.averaged`."""
    name, entries = type(optimizer).__name__, list(optimizer.named())
    if model is None and batches is not None:
        raise ValueError(f"{name}.averaged(batches=…): says nothing without the model; give it too")
    if model is not None and {id(p) for _, p, _ in entries}.isdisjoint(map(id, model.parameters())):
        raise ValueError(f"{name}.averaged(model): has none of the optimizer's parameters; give the model it trains")
    optimizer.check_iterates()
    iterates = list[tuple[Tensor, Tensor]]()
    try:
        optimizer.is_read_out = True
        with torch.no_grad():
            for key, p, _ in entries:
                memory = optimizer.state.get(p, {})
                if AVERAGE in memory:
                    iterates.append((p, p.detach().clone()))
                    p.copy_(_average(key, p, memory))
        with _renewed_statistics(name, model, batches):
            yield
    finally:
        optimizer.is_read_out = False
        with torch.no_grad():
            for p, iterate in iterates:
                p.copy_(iterate)


@contextmanager
def _renewed_statistics(name: str, model: nn.Module | None, batches: Iterable[Any] | None) -> Iterator[None]:
    """With the running statistics of BatchNorm made anew; in the end all buffers are as they were."""
    modules = [] if model is None else list(model.named_modules())
    norms = [(key, m) for key, m in modules if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if model is None or not norms:
        yield
        return
    if batches is None:
        raise ValueError(
            f"{name}.averaged(model): {norms[0][0] or 'it'} is a BatchNorm, whose running statistics are of other "
            "weights than the averages; give batches= too, inputs or tuples with them in front, as a DataLoader has"
        )
    buffers = [(m, key, x, x.clone()) for _, m in modules for key, x in m._buffers.items() if x is not None]
    try:
        _renew(name, model, batches)
        yield
    finally:
        with torch.no_grad():
            for module, key, x, before in buffers:
                setattr(module, key, x)
                x.copy_(before)


def _renew(name: str, model: nn.Module, batches: Iterable[Any]) -> None:
    """`torch.optim.swa_utils.update_bn`; modes, momenta and torch's generators stay as they are, whatever fails."""
    device = next(model.parameters()).device
    count = 0

    def inputs() -> Iterator[Any]:
        nonlocal count
        for batch in batches:
            count += 1
            x = batch[0] if isinstance(batch, list | tuple) else batch
            yield x.to(device) if isinstance(x, Tensor) else x

    modes = [(m, m.training, getattr(m, "momentum", None)) for m in model.modules()]
    graphics_cards = {p.device.index for p in model.parameters() if p.is_cuda}
    try:
        with torch.random.fork_rng(devices=graphics_cards):
            update_bn(inputs(), model)
    finally:
        for module, training, momentum in modes:
            module.training = training
            if isinstance(module, _BatchNorm):
                module.momentum = momentum
    if not count:
        raise ValueError(f"{name}.averaged(batches=…): is empty, or an iterator that has been used up; give a list")
