"""What the processes of a run tell each other where an estimator needs only scalars of the others."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch import distributed as dist

from ph_l2o.keys import ProblemKeys


def num_processes() -> int:
    """Processes that share the problems of a batch out; 1 where there is no process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gathered(x: Tensor) -> Tensor:
    """Columns of all processes, in the order of the problems: `(P, B)` → `(P, W·B)` for W processes."""
    if num_processes() == 1:
        return x
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(num_processes())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts, 1)


def keys_of_all(keys: ProblemKeys) -> ProblemKeys:
    """The keys of the problems of all processes, from those of this one.

    Raises:
        ValueError: If process r does not hold the r-th of equal, contiguous shares.
    """
    if num_processes() == 1:
        return keys
    rank, share = dist.get_rank(), len(keys)
    if list(keys.indices) != list(range(rank * share, (rank + 1) * share)):
        raise ValueError(
            "estimator.exchange=scalars: needs contiguous shares of problems in the order of the processes; "
            "use estimator.exchange=gradient"
        )
    return dataclasses.replace(keys, indices=range(num_processes() * share))
