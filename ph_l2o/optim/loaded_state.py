"""A state that is loaded into the port-Hamiltonian drop-in, checked and copied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ph_l2o.optim.drop_in import DropIn
from ph_l2o.port_hamiltonian.blocks import BASES, KEYS, dtype_of
from ph_l2o.port_hamiltonian.in_place import ACCOUNT, new_account


def checked_copy(
    optimizer: DropIn, rotates: Callable[[Tensor], bool], given: Mapping[str, Any]
) -> dict[Tensor, dict[str, Any]]:
    """What is remembered of each parameter, where and as it is needed; not what wrappers have put beside it.

    Raises:
        ValueError: If it is of another optimizer or model, or of one with its tensors in another order.
    """
    saved = given["state"]
    if ACCOUNT in saved:
        raise ValueError("the loaded state is of a version with other dynamics: start from the model's weights alone")
    for ours, theirs in zip(optimizer.param_groups, given["param_groups"], strict=False):
        names, loaded = ours.get("param_names", []), theirs.get("param_names", [])
        if names != loaded and sorted(names) == sorted(loaded):
            raise ValueError(f"the loaded state has its parameters in another order: {', '.join(loaded)}")
    keys = [key for group in given["param_groups"] for key in group["params"]]
    if saved.keys() & set(keys) and not any(ACCOUNT in saved[key] for key in keys if key in saved):
        raise ValueError("the loaded state has no account of energy: it is not of ph_l2o.optim.PortHamiltonian")
    found, accounts = dict[Tensor, dict[str, Any]](), dict[int, Tensor]()
    for key, (name, p, _) in zip(keys, optimizer.named(), strict=False):
        memory = saved.get(key, {})
        if ACCOUNT not in memory:
            continue
        _check(name, p, rotates(p), memory)
        account = memory[ACCOUNT]
        if id(account) not in accounts:  # one for all parameters stays one
            accounts[id(account)] = account.detach().to("cpu", torch.float64, copy=True)
        found[p] = {k: _copy(memory[k], p) for k in KEYS if k in memory} | {ACCOUNT: accounts[id(account)]}
    return found


def _check(name: str, p: Tensor, rotates: bool, memory: Mapping[str, Any]) -> None:
    if ("basis" in memory) != rotates:
        raise ValueError(
            f"the loaded state of parameter {name} is of weights of the other kind: load it with "
            f"pretrained={'kronecker' if 'basis' in memory else 'default'}, or what was given there"
        )
    missing = [key for key in KEYS if key not in memory and (rotates or key not in BASES)]
    if missing or memory[ACCOUNT].shape != new_account().shape:
        raise ValueError(
            f"the loaded state of parameter {name} is of another version ({', '.join(missing) or 'account'} missing): "
            "start from the model's weights alone"
        )
    shape = tuple(memory["momentum"].shape)
    if shape != tuple(p.shape):
        raise ValueError(
            f"the loaded state has shape {shape} for parameter {name} of shape {tuple(p.shape)}: it is of "
            "another model, or its parameters are in another order"
        )


def _copy(x: Any, p: Tensor) -> Any:
    if not isinstance(x, Tensor):
        return x
    return x.detach().to(p.device, dtype_of(p)).clone(memory_format=torch.contiguous_format)
