"""Results in files, each known by all that it depends on: settings, what was run, and the sources that computed it."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import logging
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

import ph_l2o
from ph_l2o.evaluation.sources import file_digest, source_digest
from ph_l2o.files import json_text, without_folders, write_atomically
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.tasks.task import Task

_LOG = logging.getLogger(__name__)

ROOT = Path(ph_l2o.__file__).parent
# What computes every kept result, besides the modules of its optimizer and its task.
_COMPUTING = tuple(f"{ph_l2o.__name__}.evaluation.{name}" for name in ("runner", "grid_search", "suite_runs"))

T = TypeVar("T")


def cached(
    folder: str | Path | None, label: str, settings: Mapping[str, Any], optimizer: LearnedOptimizer, task: Task, *,
    make: Callable[[], T], write: Callable[[T], Any], read: Callable[[Any], T], computing: Iterable[str] = (),
) -> tuple[T, bool]:  # fmt: skip
    """A result that is read from its file, or made and written there.

    Args:
        folder: Of the files; None: there are none.
        label: Begins the file's name.
        settings: What the result depends on besides optimizer, task, sources and versions; JSON can hold it.
        optimizer: What was run; of another class, with other weights or settings the result is another one.
        task: On what.
        make: Makes the result.
        write: The result as JSON can hold it.
        read: The opposite; raises ValueError, KeyError or TypeError where something is missing or damaged.
        computing: Modules that compute it, besides those of optimizer and task and of every run.

    Returns:
        The result, and whether it was read.
    """
    if folder is None:
        return make(), False
    modules = _modules(optimizer, task) | set(computing)
    spec = {
        **settings,
        "optimizer": fingerprint(optimizer),
        "task": task.spec(),
        "sources": [source_digest(ROOT, (*_COMPUTING, *modules)), *map(file_digest, sorted(_outside_files(modules)))],
        "versions": [ph_l2o.__version__, torch.__version__],
    }
    key = hashlib.sha256(json.dumps(spec, sort_keys=True, default=str).encode()).hexdigest()
    path = Path(folder) / f"{re.sub(r'[^A-Za-z0-9_.+-]', '_', label)}-{key[:24]}.json"
    if path.is_file():
        try:
            content = json.loads(path.read_text())
            if content["key"] != key:
                raise ValueError("it is of another one")
            return read(content["result"]), True
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            _LOG.warning("%s: damaged cache of a result, computed anew (%s: %s)", path, type(error).__name__, error)
    result = make()
    write_atomically(path, json_text({"key": key, "result": write(result), "spec": without_folders(spec)}))
    return result, False


def fingerprint(optimizer: LearnedOptimizer) -> str:
    """A hash of an optimizer's class, settings and weights."""
    digest = hashlib.sha256()
    for name, part in optimizer.named_modules():
        settings = {k: v for k, v in vars(part).items() if k != "training" and _is_plain(v)}
        digest.update(f"{name} {type(part).__module__}.{type(part).__qualname__} {sorted(settings.items())!r}".encode())
    for name, tensor in optimizer.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:24]


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _modules(optimizer: LearnedOptimizer, task: Task) -> set[str]:
    """Modules that have the classes and functions of which optimizer and task are made."""
    members = [member for _, member in task.members()]
    things: Iterable[Any] = [*optimizer.modules(), *members, *(v for m in members for v in vars(m).values())]
    return {place for thing in things for place in _places(thing)}


def _outside_files(modules: Iterable[str]) -> set[Path]:
    """Those of them that are from outside the package."""
    found = [getattr(sys.modules.get(n), "__file__", None) for n in modules if n.partition(".")[0] not in _FIXED]
    return {Path(file) for file in found if file and Path(file).is_file()}


_FIXED = {ph_l2o.__name__, "torch", "builtins", "abc", "typing", "__mp_main__"}


def _places(thing: Any) -> Iterable[str]:
    """Modules of a thing's class and its bases, or of a class or a function itself."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    if inspect.isfunction(thing):
        return [thing.__module__]
    return [cls.__module__ for cls in (thing if isinstance(thing, type) else type(thing)).__mro__]
