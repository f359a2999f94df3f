"""A state that is loaded into a drop-in: whose it is, checked."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ph_l2o.optim.drop_in import DropIn

_FORMER = ("account", "memory")  # keys beside the parameters, before all state belonged to them


def saved_memories(
    optimizer: DropIn, given: Mapping[str, Any], signs: Collection[str]
) -> Iterator[tuple[str, Tensor, Mapping[str, Any]]]:
    """Name, parameter, and what is saved of it, of those of which something is.

    Args:
        optimizer: Into which it is loaded.
        given: A state dictionary.
        signs: Keys by which an optimizer's memory is told from what wrappers have put there.

    Raises:
        ValueError: If it is of another optimizer, or of one with its tensors in another order.
    """
    saved, name = given["state"], type(optimizer).__name__
    if any(key in saved for key in _FORMER):
        raise ValueError(
            f"the loaded state of {name} is of an earlier version, which kept it otherwise: train on from the model's "
            "weights alone"
        )
    for ours, theirs in zip(optimizer.param_groups, given["param_groups"], strict=False):
        names, loaded = ours.get("param_names", []), theirs.get("param_names", [])
        if names != loaded and sorted(names) == sorted(loaded):
            raise ValueError(f"the loaded state has its parameters in another order: {', '.join(loaded)}")
    keys = [key for group in given["param_groups"] for key in group["params"]]
    found = {key for key in keys if key in saved and all(sign in saved[key] for sign in signs)}
    if not found and any(saved.get(key) for key in keys):
        raise ValueError(f"the loaded state is of another optimizer than {name}: it has no {', '.join(signs)}")
    for key, (name, p, _) in zip(keys, optimizer.named(), strict=False):
        if key in found:
            yield name, p, saved[key]


def check_memory(name: str, memory: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...] | None]) -> None:
    """Raise ValueError unless what is saved of a parameter has these shapes; None where it is no tensor."""
    missing = [key for key in shapes if key not in memory]
    if missing:
        raise ValueError(
            f"the loaded state of parameter {name} has no {', '.join(missing)}: it is of another version or of other "
            "weights; load it with those with which it was saved"
        )
    for key, shape in shapes.items():
        found = tuple(memory[key].shape) if isinstance(memory[key], Tensor) else None
        if found != shape:
            raise ValueError(
                f"the loaded state has {key} of shape {found} for parameter {name}, which needs {shape}: it is of "
                "another model or version, or its parameters are in another order"
            )


def copied(x: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A dense copy of a tensor; anything else as it is."""
    if not isinstance(x, Tensor):
        return x
    return x.detach().to(device, dtype).clone(memory_format=torch.contiguous_format)
