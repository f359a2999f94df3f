"""A factory of modules in words, for what defines a task."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable
from typing import Any

from torch import nn

from ph_l2o.tasks.module import seeded


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
