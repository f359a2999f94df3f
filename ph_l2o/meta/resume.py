"""What a checkpoint must hold for a run to go on from it bit for bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from ph_l2o.checkpoints import KEY, problem_of_weights, weights_of
from ph_l2o.errors import CheckpointError
from ph_l2o.meta.settings import MetaSettings
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer

_COUNTS = ("outer_step", "windows", "next_episode", "skipped_steps", "windows_left_out")
_PROGRESS = ("fit_loop", "epoch_loop.automatic_optimization.optim_progress", "optimizer", "step", "total", "completed")


def check_optimizer(checkpoint: Mapping[str, Any], optimizer: LearnedOptimizer, path: Any) -> None:
    """Raise CheckpointError for a checkpoint of another optimizer."""
    shapes = {f"optimizer.{k}": v.shape for k, v in optimizer.state_dict().items()}
    if {k: getattr(v, "shape", None) for k, v in checkpoint["state_dict"].items()} != shapes:
        raise CheckpointError(
            f"ckpt_path={path}: holds another optimizer than {type(optimizer).__name__} with these settings; "
            "resume with the settings of the run, which are in its config.yaml"
        )


def check_left(checkpoint: Mapping[str, Any], settings: MetaSettings, path: Any) -> None:
    """Raise ValueError for a checkpoint that has done all outer steps."""
    done = checkpoint[KEY].get("outer_step")
    if isinstance(done, int) and done >= settings.outer_steps:
        raise ValueError(
            f"meta.outer_steps={settings.outer_steps}: the checkpoint {path} has done {done} already; ask for more"
        )


def check_resumable(
    checkpoint: Mapping[str, Any], optimizer: LearnedOptimizer, settings: MetaSettings, path: Any, loop: Any = None
) -> None:
    """Compare a checkpoint that was read with what it is to go on in.

    Args:
        checkpoint: The checkpoint.
        optimizer: The learned optimizer.
        settings: Of its training.
        path: The file, for messages.
        loop: State of Lightning's loop before the start, once there is one.

    Raises:
        CheckpointError: If something is missing, of another kind or shape, or out of range.
    """
    try:
        problem = _problem(checkpoint, optimizer, settings)
        if loop is not None and problem is None:
            problem = _problem_of_loop(loop, checkpoint["loops"]["fit_loop"], "fit_loop")
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__} {ascii(error)[:100]}"
    if problem:
        raise CheckpointError(
            f"ckpt_path={path}: cannot be resumed from, {problem}; resume with the settings of the run, from another "
            "of its checkpoints, or train anew (weights=… starts from weights alone)"
        )


def _problem(checkpoint: Mapping[str, Any], optimizer: LearnedOptimizer, settings: MetaSettings) -> str | None:
    kinds = {"loops": dict, "callbacks": dict, "optimizer_states": list, "lr_schedulers": list, "epoch": int}
    for key, kind in kinds.items():
        if not isinstance(checkpoint.get(key), kind):
            return f"without {key}"
    own = checkpoint[KEY]
    for name, count in {**{n: own[n] for n in _COUNTS}, "epoch": checkpoint["epoch"]}.items():
        if not _is_count(count):
            return f"{name} is {ascii(count)[:50]}"
    done: Any = checkpoint["loops"]
    for key in _PROGRESS:
        done = done[key]
    if not own["outer_step"] == checkpoint["global_step"] == done:
        return f"global_step is {ascii(checkpoint['global_step'])[:50]}, {ascii(done)[:50]} outer steps are done"
    if len(own["episodes"]) != settings.episodes:
        return f"it has {len(own['episodes'])} episodes under way, meta.episodes={settings.episodes}"
    if problem := problem_of_weights(weights_of(checkpoint), optimizer.state_dict()):
        return f"its {problem}"
    names = [name for name, _ in optimizer.named_parameters()]
    if own.get("trained", names) != list(settings.trained(optimizer)):
        return f"it trains {ascii(own['trained'])[:200]}, other meta-parameters than meta.only says"
    outer, schedule = _after_a_step(optimizer, settings)
    return (
        _problem_of_outer(checkpoint["optimizer_states"], outer)
        or _problem_of_values("lr_schedulers", schedule.state_dict(), checkpoint["lr_schedulers"][0])
        or next((p for p in map(_problem_of_episode, own["episodes"]) if p), None)
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _problem_of_loop(expected: Any, found: Any, name: str) -> str | None:
    """Whether a loop's state is nested as it is at the start."""
    if isinstance(expected, dict):
        if not isinstance(found, dict) or not set(expected) <= set(found):
            return f"the state of its {name} is not whole"
        problems = (_problem_of_loop(value, found[key], key) for key, value in expected.items())
        return next((problem for problem in problems if problem), None)
    if isinstance(expected, int) and not isinstance(found, bool) and not _is_count(found):
        return f"the state of its {name} is {ascii(found)[:50]}"
    return None


def _problem_of_outer(states: list[dict[str, Any]], outer: torch.optim.Optimizer) -> str | None:
    expected, (found,) = outer.state_dict(), states
    if len(found["param_groups"]) != len(expected["param_groups"]):
        return f"the outer optimizer has {len(found['param_groups'])} groups"
    for group, of_file in zip(expected["param_groups"], found["param_groups"], strict=True):
        if of_file["params"] != group["params"]:
            return "the outer optimizer has other parameters"
        if problem := _problem_of_values("the outer optimizer", group, of_file):
            return problem
    after_a_step = expected["state"]
    for index, state in found["state"].items():
        if set(after_a_step[index]) != set(state):
            return f"the outer optimizer's state of parameter {index} is not whole"
        tensors = {name: x for name, x in after_a_step[index].items() if isinstance(x, Tensor)}
        if problem := problem_of_weights({name: state[name] for name in tensors}, tensors):
            return f"the outer optimizer's {problem}"
        for name, value in state.items():
            if (name == "step" or name.endswith("exp_avg_sq")) and (torch.as_tensor(value) < 0).any():
                return f"the outer optimizer's {name} is negative"
            if isinstance(value, float) and not math.isfinite(value):
                return f"the outer optimizer's {name} is {value}"
    return None


def _after_a_step(optimizer: LearnedOptimizer, settings: MetaSettings) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """The outer optimizer and its schedule on copies of the parameters, with all state that it will have."""
    copies = [torch.nn.Parameter(p.detach().clone()) for p in settings.trained(optimizer).values()]
    outer, schedule = settings.configure(copies)
    for p in copies:
        p.grad = torch.zeros_like(p)
    outer.step()
    return outer, schedule


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


def _problem_of_episode(saved: Any) -> str | None:
    if saved is None:
        return None
    numbers = {name: saved[name] for name in ("number", "horizon", "age")}
    if not all(map(_is_count, numbers.values())) or saved["age"] > saved["horizon"]:
        return f"an episode has {ascii(numbers)[:100]}"
    tensors = [saved["params"], *saved["state"], *saved["buffers"].values()]
    return None if all(isinstance(x, Tensor) for x in tensors) else "an episode has values that are no tensors"
