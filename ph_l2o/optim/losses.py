"""The loss that a drop-in's step sees: out of what users give, as one number, averaged over processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

Loss = Tensor | float | None


def returned_loss(result: Any) -> Any:
    """The loss in what a closure has returned: that itself, or what a mapping has under `loss`, or a tuple in front.

    Raises:
        TypeError: If there is none in a mapping or a tuple.
    """
    if isinstance(result, Mapping):
        found = result.get("loss")
    elif isinstance(result, (tuple, list)):
        found = result[0] if result else None
    else:
        return result
    if found is None:
        raise TypeError(
            f"the closure returned a {type(result).__name__} without a loss: it must return the loss, or a dict that "
            'has it as "loss", or a tuple with it in front'
        )
    return found


def as_number(loss: Any) -> Tensor:
    """The loss as one number of float64.

    Raises:
        ValueError: If it is not one real number.
        TypeError: If it is no number at all.
    """
    try:
        given = loss.detach() if isinstance(loss, Tensor) else torch.as_tensor(loss, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"loss of type {type(loss).__name__}: must be one real number") from error
    if given.numel() != 1 or given.is_complex():
        raise ValueError(f"loss of shape {tuple(given.shape)}, {given.dtype}: must be one real number")
    return torch.tensor(given.item(), dtype=torch.float64)


def mean_over_processes(loss: Tensor | None, group: Any, device: torch.device) -> float | None:
    """Mean of the losses of those that have one; None if none has. All processes of the group must call it.

    Raises:
        RuntimeError: If the others do something else meanwhile.
    """
    sums = torch.zeros(2, dtype=torch.float64)
    if loss is not None:
        sums[0], sums[1] = loss, 1.0
    if dist.get_backend(group) == "nccl":
        sums = sums.to(device)
    try:
        dist.all_reduce(sums, group=group)
    except RuntimeError as error:
        raise RuntimeError(
            "the loss cannot be averaged over processes: in each step all must give one, or none; where they have "
            "different numbers of batches, use Join([model, optimizer]), not model.join()"
        ) from error
    total, count = sums.tolist()
    return total / count if count else None
