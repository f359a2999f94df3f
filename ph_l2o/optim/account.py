"""The account of energy in the state of a drop-in optimizer, and what is loaded into that state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ph_l2o.port_hamiltonian import in_place
from ph_l2o.port_hamiltonian.kernels import Slot
from ph_l2o.port_hamiltonian.single_problem import State

if TYPE_CHECKING:
    from ph_l2o.optim.drop_in_port_hamiltonian import PortHamiltonian

KEY = "account"  # of the account, among the parameters in `state`
_DECAYS = "decays"  # stiffness, beside the common one, of the springs whose energy is in the account


def numbers(account: Mapping[str, Any]) -> State:
    """The numbers of a step; of an account that is empty, those before the first one."""
    return State(**{name: x for name, x in account.items() if name != _DECAYS})


def shown(state: State, slots: Sequence[Slot]) -> dict[str, Any]:
    """The account as it lies in `state` of the drop-in: plain numbers."""
    return {**state.as_dict(), _DECAYS: [slot.weight_decay for slot in slots]}


def opened(account: Mapping[str, Any], slots: Sequence[Slot], budget: float, radius: float) -> State:
    """The numbers, with the energy of springs that are new in the account or have become stiffer."""
    state, known = numbers(account), list(account.get(_DECAYS, []))
    decays = [slot.weight_decay for slot in slots]
    if known == decays:
        return state
    squares = [in_place.square(slot.theta) for slot in slots]
    if not known:
        state.energy = budget
        state.stiffness = 2 * budget / (radius**2 * max(sum(squares), sum(slot.theta.numel() for slot in slots)))
    state.energy += 0.5 * state.stiffness * sum(squares[len(known) :])
    known += [0.0] * (len(slots) - len(known))
    for square, before, now in zip(squares, known, decays, strict=True):
        state.energy += 0.5 * max(now - before, 0.0) * square
    return state


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
        if ("basis" in saved[key]) != optimizer.rotates(p):
            raise ValueError(
                f"the loaded state of parameter {name} is of weights of the other kind: load it with "
                f"pretrained={'kronecker' if 'basis' in saved[key] else 'default'}, or what was given there"
            )
        found[p] = {k: in_place.remembered(x, p) if isinstance(x, Tensor) else x for k, x in saved[key].items()}
    if KEY in saved:
        found[KEY] = dict(saved[KEY])
    return found
