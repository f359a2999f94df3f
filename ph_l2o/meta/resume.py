"""What a checkpoint must hold for a run to go on from it bit for bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ph_l2o.checkpoints import KEY
from ph_l2o.errors import CheckpointError
from ph_l2o.meta.settings import MetaSettings
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer

_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")  # one number for each of a parameter
_COUNTS = ("outer_step", "windows", "next_episode", "skipped_steps", "windows_left_out")
_PROGRESS = ("fit_loop", "epoch_loop.automatic_optimization.optim_progress", "optimizer", "step", "total", "completed")


def check_resumable(
    checkpoint: Mapping[str, Any], optimizer: LearnedOptimizer, settings: MetaSettings, path: Any
) -> None:
    """Compare a checkpoint that was read with what it is to go on in.

    Raises:
        CheckpointError: If something is missing, of another kind or shape, or out of range.
    """
    try:
        problem = _problem(checkpoint, optimizer, settings)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__} {ascii(error)[:100]}"
    if problem:
        raise CheckpointError(
            f"ckpt_path={path}: cannot be resumed from, {problem}; resume from another of the run, or train anew "
            "(weights=… starts from its weights alone)"
        )


def _problem(checkpoint: Mapping[str, Any], optimizer: LearnedOptimizer, settings: MetaSettings) -> str | None:
    for key in ("loops", "callbacks", "optimizer_states", "lr_schedulers", "epoch", "global_step"):
        if key not in checkpoint:
            return f"without {key}"
    own = checkpoint[KEY]
    for name, count in {**{n: own[n] for n in _COUNTS}, "epoch": checkpoint["epoch"]}.items():
        if not isinstance(count, int) or count < 0:
            return f"{name} is {count}"
    done: Any = checkpoint["loops"]
    for key in _PROGRESS:
        done = done[key]
    if not own["outer_step"] == checkpoint["global_step"] == done:
        return f"global_step is {checkpoint['global_step']}, {done} outer steps are done"
    outer, schedule = settings.configure(optimizer.parameters())
    return (
        _problem_of_outer(checkpoint["optimizer_states"], outer)
        or _problem_of_values("lr_schedulers", schedule.state_dict(), checkpoint["lr_schedulers"][0])
        or next((p for p in map(_problem_of_episode, own["episodes"]) if p), None)
    )


def _problem_of_outer(states: list[dict[str, Any]], outer: torch.optim.Optimizer) -> str | None:
    expected, (found,) = outer.state_dict(), states
    if len(found["param_groups"]) != len(expected["param_groups"]):
        return f"the outer optimizer has {len(found['param_groups'])} groups"
    for group, of_file in zip(expected["param_groups"], found["param_groups"], strict=True):
        if of_file["params"] != group["params"]:
            return "the outer optimizer has other parameters"
        if problem := _problem_of_values("the outer optimizer", group, of_file):
            return problem
    parameters = [p for group in outer.param_groups for p in group["params"]]
    for index, state in found["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor) and (problem := _problem_of_state(name, value, parameters[index])):
                return f"the outer optimizer's {name} {problem}"
            if isinstance(value, float) and not math.isfinite(value):
                return f"the outer optimizer's {name} is {value}"
    return None


def _problem_of_state(name: str, value: Tensor, parameter: Tensor) -> str | None:
    if not value.isfinite().all():
        return "is not finite"
    if name in _MOMENTS and value.shape != parameter.shape:
        return f"has shape {tuple(value.shape)}, its parameter {tuple(parameter.shape)}"
    if name in _MOMENTS and value.dtype not in (torch.float32, torch.float64):
        return f"is {value.dtype}"
    if name == "step" and value.numel() != 1:
        return f"has shape {tuple(value.shape)}"
    return "is negative" if (name == "step" or name.endswith("exp_avg_sq")) and (value < 0).any() else None


def _problem_of_values(what: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """Whether all settings are there and, where they are numbers, of the same kind and finite."""
    for name, value in expected.items():
        if name not in found:
            return f"{what} is without {name}"
        for like, x in zip(_flat(value), _flat(found[name]), strict=False):
            is_number = isinstance(like, int | float) and not isinstance(like, bool)
            if is_number and (isinstance(x, bool) or not isinstance(x, int | float) or not math.isfinite(x)):
                return f"{what} has {name}={x}"
            if isinstance(like, bool) and not isinstance(x, bool | None):
                return f"{what} has {name}={x}"
    if "betas" in found and not all(0 <= beta < 1 for beta in found["betas"]):
        return f"{what} has betas={found['betas']}"
    return None


def _flat(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _problem_of_episode(saved: dict[str, Any] | None) -> str | None:
    if saved is None:
        return None
    numbers = {name: saved[name] for name in ("number", "horizon", "age")}
    if not all(isinstance(n, int) and n >= 0 for n in numbers.values()) or saved["age"] > saved["horizon"]:
        return f"an episode has {numbers}"
    tensors = [saved["params"], *saved["state"], *saved["buffers"].values()]
    return None if all(isinstance(x, Tensor) for x in tensors) else "an episode has values that are no tensors"
