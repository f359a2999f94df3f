"""Any `LearnedOptimizer` as a `torch.optim.Optimizer`, by its pure `update` on one flat row."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from ph_l2o.optim.drop_in import DropIn, flat
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer, map_state
from ph_l2o.params import Layout, Params

MEMORY = "memory"  # its key in `state`


class Learned(DropIn):
    """A learned optimizer over all parameters at once, in float32, or float64 if any of them is.

    It keeps what the optimizer remembers and, during a step, copies of all parameters and gradients. For a
    parameter without gradient the optimizer sees the gradient 0, and what it would do to the parameter is not done.
    No group can be added after the first step.

    Args:
        params: Parameters, named parameters or groups of either, on one device; a group can have its own `lr`.
        learned: The optimizer; it is copied.
        lr: Factor of each step, >= 0.
        reduce_loss: See `ph_l2o.optim.PortHamiltonian`.
        process_group: See there.

    Raises:
        ValueError: If an argument is out of range, or as `torch.optim.AdamW` does.
        TypeError: If a parameter is complex, or in parts on several processes (FSDP, DTensor).
    """

    def __init__(
        self,
        params: Any,
        learned: LearnedOptimizer,
        lr: float | Tensor = 1.0,
        *,
        reduce_loss: bool = True,
        process_group: Any = None,
    ):
        self._learned = copy.deepcopy(learned).requires_grad_(False).eval()
        super().__init__(params, {"lr": lr}, reduce_loss=reduce_loss, process_group=process_group)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickle; see `torch.optim.Optimizer`."""
        names = ("_learned", "reduce_loss", "process_group")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in names}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `torch.optim.Optimizer.load_state_dict`; the tensors are copied.

        Raises:
            ValueError: If the state is of another optimizer or another number of coordinates.
        """
        memory, (_, start) = state_dict["state"].get(MEMORY), self._start()
        if state_dict["state"] and (memory is None or _shapes(memory) != _shapes(_named(start))):
            raise ValueError(f"the loaded state is of another optimizer than {self._name()}, or of another model")
        super().load_state_dict(state_dict)
        if memory is not None:
            self.state[MEMORY] = {k: x.to(self._device(), copy=True) for k, x in memory.items()}  # type: ignore[index]

    def _take_step(self, loss: float | None) -> None:
        entries = [(p, group) for _, p, group in self.named() if p.numel()]
        if all(p.grad is None for p, _ in entries):
            return
        params, state = self._start()
        dtype = params.flat.dtype
        grads = [flat(torch.zeros_like(p) if p.grad is None else p.grad, dtype) for p, _ in entries]
        if loss is None and self._learned.needs_loss:
            raise ValueError(f"{self._name()} needs the loss: call step(loss=loss) or step(closure)")
        value = None if loss is None else params.flat.new_tensor([loss])
        leaves = iter(self.state.get(MEMORY, {}).values())  # type: ignore[call-overload]
        state = map_state(lambda x: next(leaves, x), state)
        new, state = self._learned.to(params.flat).update(params, params.like(torch.cat(grads)[None]), value, state)
        after = new.flat[0].split([p.numel() for p, _ in entries])
        for (p, group), changed in zip(entries, after, strict=True):
            if p.grad is not None:
                rate = float(group["lr"])
                p.copy_(changed.view(p.shape) if rate == 1 else torch.lerp(p.to(dtype), changed.view(p.shape), rate))
        self.state[MEMORY] = _named(state)  # type: ignore[index]

    @torch.no_grad()
    def _start(self) -> tuple[Params, Any]:
        """The parameters as a row, and the state before the first step."""
        named = [(name, p) for name, p, _ in self.named() if p.numel()]
        layout = Layout(tuple(name for name, _ in named), tuple(tuple(p.shape) for _, p in named))
        dtype = torch.float64 if any(p.dtype == torch.float64 for _, p in named) else torch.float32
        params = Params(torch.cat([flat(p, dtype) for _, p in named])[None], layout)
        return params, self._learned.to(params.flat).init(params)

    def _device(self) -> torch.device:
        return self.param_groups[0]["params"][0].device

    def _name(self) -> str:
        return type(self._learned).__name__


def _named(state: Any) -> dict[str, Tensor]:
    """The tensors of a state, in order."""
    leaves: list[Tensor] = []
    map_state(lambda x: leaves.append(x) or x, state)
    return {str(k): x for k, x in enumerate(leaves)}


def _shapes(tensors: dict[str, Tensor]) -> list[tuple[int, ...]]:
    return [tuple(x.shape) for x in tensors.values()]
