"""A state that is loaded into the port-Hamiltonian drop-in, checked and copied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ph_l2o.optim.drop_in import DropIn
from ph_l2o.port_hamiltonian.blocks import dtype_of

ACCOUNT = "account"  # the account of energy, among the parameters in `state`


def checked_copy(
    optimizer: DropIn, rotates: Callable[[Tensor], bool], given: Mapping[str, Any]
) -> dict[Tensor | str, dict[str, Any]]:
    """What is remembered of each parameter, where and as it is needed.

    Raises:
        ValueError: If it is of another optimizer or model, or of one with its tensors in another order.
    """
    saved = given["state"]
    if saved and ACCOUNT not in saved:
        raise ValueError("the loaded state has no account of energy: it is not of ph_l2o.optim.PortHamiltonian")
    for ours, theirs in zip(optimizer.param_groups, given["param_groups"], strict=False):
        names, loaded = ours.get("param_names", []), theirs.get("param_names", [])
        if names != loaded and sorted(names) == sorted(loaded):
            raise ValueError(f"the loaded state has its parameters in another order: {', '.join(loaded)}")
    keys = [key for group in given["param_groups"] for key in group["params"]]
    found: dict[Tensor | str, dict[str, Any]] = {}
    for key, (name, p, _) in zip(keys, optimizer.named(), strict=False):
        if key in saved:
            _check(name, p, rotates(p), saved[key])
            found[p] = {k: _copy(x, p) if isinstance(x, Tensor) else x for k, x in saved[key].items()}
    if ACCOUNT in saved:
        found[ACCOUNT] = dict(saved[ACCOUNT])
    return found


def _check(name: str, p: Tensor, rotates: bool, memory: Mapping[str, Any]) -> None:
    shape = tuple(memory["momentum"].shape)
    if shape != tuple(p.shape):
        raise ValueError(
            f"the loaded state has shape {shape} for parameter {name} of shape {tuple(p.shape)}: it is of "
            "another model, or its parameters are in another order"
        )
    if ("basis" in memory) != rotates:
        raise ValueError(
            f"the loaded state of parameter {name} is of weights of the other kind: load it with "
            f"pretrained={'kronecker' if 'basis' in memory else 'default'}, or what was given there"
        )


def _copy(x: Tensor, p: Tensor) -> Tensor:
    return x.detach().to(p.device, dtype_of(p)).clone(memory_format=torch.contiguous_format)
