"""Modules from a factory: made under seeds of their own, and described for what defines a task."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn

Made = TypeVar("Made", bound=nn.Module)


def checked_factory(model: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """The factory.

    Raises:
        ValueError: If it is none, such as a module.
    """
    if isinstance(model, nn.Module) or not callable(model):
        raise ValueError(
            f"task.model={type(model).__name__}: must be a function that makes a module, such as a class or a "
            "functools.partial; in a configuration, a node with _partial_: true"
        )
    return model


def seeded(factory: Callable[[], Made], seed: int) -> Made:
    """A module from the factory under a seed of its own; torch's generator is left as it was."""
    with torch.device("cpu"), own_generator(torch.device("cpu")) as generator:
        generator.manual_seed(seed)
        try:
            module = factory()
        except Exception as error:  # whatever a user's constructor raises
            if str(error).startswith("task."):
                raise
            raise ValueError(f"task.model: cannot be made ({type(error).__name__}: {one_line(error)})") from error
    if not isinstance(module, nn.Module):
        raise ValueError(f"task.model: must make an nn.Module, not {type(module).__name__}")
    return module


def one_line(error: BaseException) -> str:
    """The first line of an error's text."""
    return str(error).strip().partition("\n")[0][:300]


@contextlib.contextmanager
def own_generator(device: torch.device) -> Iterator[torch.Generator]:
    """The default generator of a device, left as it was in the end."""
    if device.type == "cuda":
        torch.cuda.init()
        index = torch.cuda.current_device() if device.index is None else device.index
        generator = torch.cuda.default_generators[index]
    else:
        generator = torch.default_generator
    state = generator.get_state()
    try:
        yield generator
    finally:
        generator.set_state(state)


def described(model: Callable[..., nn.Module], *arguments: Any) -> dict[str, str]:
    """A factory in words that are the same in every process, and what it makes of the arguments."""
    module = seeded(lambda: model(*arguments), 0)
    digest = hashlib.sha256()
    for name, part in module.named_modules():
        plain = {k: v for k, v in vars(part).items() if isinstance(v, bool | int | float | str | tuple)}
        digest.update(f"{name} {sorted(plain.items())!r}".encode())
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return {"factory": _name(model), "module": repr(module), "start": digest.hexdigest()[:16]}


def _name(factory: Any) -> str:
    if isinstance(factory, functools.partial):
        arguments = [*map(_name, factory.args), *(f"{k}={_name(v)}" for k, v in factory.keywords.items())]
        return f"{_name(factory.func)}({', '.join(arguments)})"
    if hasattr(factory, "__qualname__"):
        return f"{factory.__module__}.{factory.__qualname__}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(factory))
