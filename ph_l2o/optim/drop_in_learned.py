"""Any `LearnedOptimizer` as a `torch.optim.Optimizer`, by its pure `update` on one flat row."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ph_l2o.optim.adamw_options import refuse_options
from ph_l2o.optim.cut_state import CutState
from ph_l2o.optim.drop_in import DropIn, Entry, asks_for_a_state, flat
from ph_l2o.optim.group_options import rate
from ph_l2o.optim.loaded_state import check_memory, copied, saved_memories
from ph_l2o.optim.surroundings import settings_of_our_own
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.params import Layout, Params


class Learned(DropIn):
    """A learned optimizer over all parameters with a gradient at once, in float32, or float64 if any of them is.

    It keeps what the optimizer remembers, cut by parameter; numbers that belong to none lie with each. During a step it
    has copies of the parameters, gradients and memory that take part. A parameter without gradient rests.

    Args:
        params: Parameters, named parameters or groups of either, on one device; a group can have its own `lr`.
        learned: The optimizer; it is copied.
        lr: Factor of each step, >= 0.
        reduce_loss: See `ph_l2o.optim.PortHamiltonian`.
        process_group: See there.

    Raises:
        ValueError: If an argument is out of range, or as `torch.optim.AdamW` does.
        TypeError: If a parameter is complex, or in parts on several processes (FSDP, DTensor), or an option is AdamW's
            alone (`betas`, `maximize`, …).
    """

    def __init__(
        self,
        params: Any,
        learned: LearnedOptimizer,
        lr: float | Tensor = 1.0,
        *,
        reduce_loss: bool = True,
        process_group: Any = None,
        **options: Any,
    ):
        refuse_options(type(self), options)
        self._learned = copy.deepcopy(learned).requires_grad_(False).eval()
        with settings_of_our_own():
            self._cut = CutState(self._learned)
        super().__init__(params, {"lr": lr}, reduce_loss=reduce_loss, process_group=process_group)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickle; see `torch.optim.Optimizer`."""
        names = ("_learned", "_cut", "reduce_loss", "process_group")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in names}}

    def _copied(self, given: Mapping[str, Any]) -> dict[Tensor, dict[str, Any]]:
        found = {}
        for name, p, memory in saved_memories(self, given, self._cut.axes):
            check_memory(name, memory, self._cut.shapes(tuple(p.shape)))
            found[p] = {key: copied(memory[key], p.device, memory[key].dtype) for key in self._cut.axes}
        return found

    def _take_step(self, entries: list[Entry], loss: float | None) -> None:
        known = {name: self.state.get(p, {}) for name, p, _ in entries}
        known = {name: memory for name, memory in known.items() if self._cut.axes.keys() <= memory.keys()}
        entries = [entry for entry in entries if entry[1].grad is not None]
        if not entries:
            return
        params = _row([p for _, p, _ in entries], [name for name, _, _ in entries])
        learned = self._learned.to(params.flat)
        if loss is None and not known and asks_for_a_state((p.grad, group["lr"]) for _, p, group in entries):
            state = learned.init(params)
        elif loss is None and learned.needs_loss:
            raise ValueError(f"{type(learned).__name__} needs the loss: call step(loss=loss) or step(closure)")
        else:
            value = None if loss is None else params.flat.new_tensor([loss])
            grads = [flat(p.grad, params.flat.dtype) for _, p, _ in entries if p.grad is not None]
            before = self._cut.joined(params, known)
            new, state = learned.update(params, params.like(torch.cat(grads)[None]), value, before)
            for (_, p, group), x in zip(entries, new.tensors().values(), strict=True):
                lr = rate(group)
                p.copy_(x[0] if lr == 1 else torch.lerp(p.to(x.dtype), x[0], lr))
        for (_, p, _), memory in zip(entries, self._cut.parts(params.layout, state, known.values()), strict=True):
            self.state[p].update(memory)


def _row(tensors: Sequence[Tensor], names: Sequence[str]) -> Params:
    dtype = torch.float64 if any(p.dtype == torch.float64 for p in tensors) else torch.float32
    layout = Layout(tuple(names), tuple(tuple(p.shape) for p in tensors))
    return Params(torch.cat([flat(p, dtype) for p in tensors])[None], layout)
