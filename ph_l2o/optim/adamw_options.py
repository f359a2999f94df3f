"""Options that `torch.optim.AdamW` has and a drop-in has not, each with what to do instead."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from ph_l2o.checks import did_you_mean

_LEARNED = "is learned, and can't be set; leave it out"
INSTEAD = {
    "betas": _LEARNED,
    "eps": _LEARNED,
    "amsgrad": "steps are bounded by their energy; leave it out",
    "maximize": "negate the objective, and give its negative as the loss, if that is >= 0",
    "foreach": "all tensors are stepped together; leave it out",
    "fused": "compile=True has fused loops on the CPU",
    "capturable": "a step waits for numbers, which a CUDA graph can't; leave it out, and the step out of the graph",
    "differentiable": "steps in place have no derivative; ph_l2o.inner has steps that can be differentiated",
}


def refuse_options(optimizer: type, options: Mapping[str, Any]) -> None:
    """Raise TypeError for options that are not there; not where they ask for nothing: None, or False.

    Args:
        optimizer: Its class.
        options: By name, without those that are there.
    """
    for key, value in options.items():
        if key not in INSTEAD:
            hint = did_you_mean(key, inspect.signature(optimizer).parameters)
            raise TypeError(f"{optimizer.__name__} has no option {key}{hint}")
        if value is not None and value is not False:
            raise TypeError(f"{optimizer.__name__}: {key}={value} is AdamW's alone: {INSTEAD[key]}")
