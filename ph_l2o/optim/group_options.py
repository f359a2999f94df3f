"""The options of a parameter group that a step uses, checked whenever it does: schedulers and users set them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from ph_l2o.checks import at_least

_ROUNDING = 1e-9  # schedules end so far below 0
_SMALL = 0.02


def rate(group: Mapping[str, Any]) -> float:
    """A group's `lr`; a schedule's end that rounding has put below 0 is 0."""
    value = float(group["lr"])
    return 0.0 if -_ROUNDING <= value < 0 else value


def check_options(group: Mapping[str, Any]) -> None:
    """Raise ValueError unless `lr` and `weight_decay` are finite numbers >= 0, `total_steps` None or a number >= 1."""
    for name in ("lr", "weight_decay"):
        value = group.get(name, 0.0)
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"{name} of shape {tuple(value.shape)}: must be one number")
        if not 0 <= (rate(group) if name == "lr" else float(value)) < math.inf:
            raise ValueError(f"{name}={value}: must be >= 0 and finite")
    if group.get("total_steps") is not None:
        at_least("total_steps", group["total_steps"], 1, "steps of the run, or None")


def warn_of_small_rates(name: str, groups: Iterable[Mapping[str, Any]]) -> None:
    """Once, for an optimizer of this name, where an `lr` looks like AdamW's."""
    small = [value for group in groups if 0 < (value := float(group["lr"])) <= _SMALL]
    if small:
        warnings.warn(
            f"{name}: lr={min(small):g} is a factor of learned learning rates, 1 is what was trained; a value of "
            "AdamW's trains next to nothing",
            stacklevel=4,
        )
