"""The account of energy in the state of a drop-in optimizer, and what is loaded into that state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ph_l2o.optim import in_place
from ph_l2o.optim.kernels import Slot
from ph_l2o.optimizers.port_hamiltonian import PortHamiltonian as Learned
from ph_l2o.optimizers.port_hamiltonian import PortHamiltonianState

if TYPE_CHECKING:
    from ph_l2o.optim.port_hamiltonian import PortHamiltonian

KEY = "account"  # of the account, among the parameters in `state`
_DECAYS = "decays"  # stiffness, beside the common one, of the springs whose energy is in the account
_COORDINATES = ("averages", "second", "momentum")  # of the pure optimizer's state; here each parameter's


def numbers(account: Mapping[str, Tensor]) -> PortHamiltonianState:
    """The numbers of a step; of an account that is empty, those before the first one."""
    found = {name: x.cpu() for name, x in account.items() if name != _DECAYS}
    return in_place.new_numbers()._replace(**found)


def shown(numbers: PortHamiltonianState, slots: Sequence[Slot]) -> dict[str, Tensor]:
    """The account as it lies in `state`."""
    found = {name: x for name, x in numbers._asdict().items() if name not in _COORDINATES}
    return {**found, _DECAYS: torch.tensor([slot.weight_decay for slot in slots], dtype=torch.float64)}


def opened(account: Mapping[str, Tensor], slots: Sequence[Slot], learned: Learned) -> PortHamiltonianState:
    """The numbers, with the energy of springs that are new in the account or have become stiffer."""
    found = numbers(account)
    known = account[_DECAYS].tolist() if account else []
    decays = [slot.weight_decay for slot in slots]
    if known == decays:
        return found
    squares = torch.tensor([in_place.square(slot.theta) for slot in slots], dtype=torch.float64)
    if not known:
        size = torch.tensor(float(sum(slot.theta.numel() for slot in slots)), dtype=torch.float64)
        energy, stiffness = learned.account(squares.sum()[None], size)
    else:
        energy, stiffness = found.energy, found.stiffness
        energy = energy + 0.5 * stiffness * squares[len(known) :].sum()
    before = torch.tensor(known + [0.0] * (len(slots) - len(known)), dtype=torch.float64)
    stiffer = (torch.tensor(decays, dtype=torch.float64) - before).clamp_min(0)
    return found._replace(energy=energy + 0.5 * (stiffer * squares).sum(), stiffness=stiffness)


def checked(optimizer: PortHamiltonian, given: Mapping[str, Any]) -> dict[Tensor | str, dict[str, Any]]:
    """Copies of what is loaded, by parameter.

    Raises:
        ValueError: If it is of another optimizer or model, or of one with its tensors in another order.
    """
    saved = given["state"]
    if saved and KEY not in saved:
        raise ValueError("the loaded state has no account of energy: it is not of ph_l2o.optim.PortHamiltonian")
    for ours, theirs in zip(optimizer.param_groups, given["param_groups"], strict=False):
        names, loaded = ours.get("param_names", []), theirs.get("param_names", [])
        if names != loaded and sorted(names) == sorted(loaded):
            raise ValueError(f"the loaded state has its parameters in another order: {', '.join(loaded)}")
    keys = [key for group in given["param_groups"] for key in group["params"]]
    found: dict[Tensor | str, dict[str, Any]] = {}
    for key, (name, p, _) in zip(keys, optimizer.named(), strict=False):
        if key not in saved:
            continue
        shape = tuple(saved[key]["momentum"].shape)
        if shape != tuple(p.shape):
            raise ValueError(
                f"the loaded state has shape {shape} for parameter {name} of shape {tuple(p.shape)}: it is of "
                "another model, or its parameters are in another order"
            )
        found[p] = {k: x if k == "step" else in_place.remembered(x, p) for k, x in saved[key].items()}
    if KEY in saved:
        found[KEY] = {name: x.clone() for name, x in saved[KEY].items()}
    return found
