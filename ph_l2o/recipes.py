"""Objects from plain values, through a table of known classes: no name from a file is ever imported.

A recipe is a mapping of `_target_`, the class, and of constructor arguments: what JSON can hold, and further recipes.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

TARGET = "_target_"
_OWN = __name__.partition(".")[0]
_CLASSES: dict[str, type] = {}


def register(cls: type) -> None:
    """Make a class known by its place, as `LearnedOptimizer` does for each subclass that is defined."""
    _CLASSES[place(cls)] = cls


def classes() -> tuple[type, ...]:
    """All that are known, in the order in which they were defined."""
    return tuple(_CLASSES.values())


def place(cls: type) -> str:
    """Where a class is from; of this package's the public place, which stays when its file moves."""
    package, _, rest = cls.__module__.partition(".")
    room = rest.partition(".")[0]
    if package == _OWN and room in ("optimizers", "port_hamiltonian"):
        return f"{_OWN}.optimizers.{cls.__qualname__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def recipe(cls: type, arguments: inspect.BoundArguments) -> dict[str, Any]:
    """What makes an object of a class with these arguments, `self` among them; empty if it cannot be made anew.

    That is, if arguments are not plain, or the class is defined in a function.
    """
    if "<locals>" in cls.__qualname__:
        return {}
    _, *names = arguments.arguments
    values: dict[str, Any] = {}
    for name in names:
        is_rest = arguments.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        values.update(arguments.arguments[name] if is_rest else {name: arguments.arguments[name]})
    try:
        return {TARGET: place(cls), **json.loads(json.dumps(values, default=_nested))}
    except TypeError:
        return {}


def _nested(value: Any) -> dict[str, Any]:
    """The recipe of an argument that has one."""
    if not getattr(value, "recipe", None):
        raise TypeError(f"{type(value).__name__} is no plain value")
    return value.recipe


def targets(node: Any) -> Iterator[str]:
    """Classes in a configuration, without their arguments: these can be folders of the machine."""
    if isinstance(node, dict):
        if TARGET in node:
            yield str(node[TARGET])
        for value in node.values():
            yield from targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value)


def construct(made: Mapping[str, Any], *, plugins: Iterable[str] = ()) -> Any:
    """The object of a recipe.

    Args:
        made: The recipe.
        plugins: Modules that the user named. One is imported if the class is of it or of a module below; no other is.

    Raises:
        LookupError: If the class is not known; the text says what to do.
        ImportError: If one of these modules cannot be imported.
        TypeError: If the class does not take these arguments.
        ValueError: If one of them is out of range.
    """
    plugins = tuple(plugins)
    cls = _found(made.get(TARGET), plugins)
    return cls(**{k: _argument(v, plugins) for k, v in made.items() if k != TARGET})


def _argument(value: Any, plugins: tuple[str, ...]) -> Any:
    return construct(value, plugins=plugins) if isinstance(value, Mapping) and TARGET in value else value


def _found(target: Any, plugins: tuple[str, ...]) -> type:
    if not isinstance(target, str) or not re.fullmatch(r"\w+(\.\w+)+", target):
        raise LookupError(f"{ascii(target)[:100]}, which is no class's name")
    package, (module, _, name) = target.partition(".")[0], target.rpartition(".")
    for plugin in plugins:
        if f"{module}.".startswith(f"{plugin}."):
            importlib.import_module(plugin)
    if target in _CLASSES:
        return _CLASSES[target]
    # A class can be named by where its package shows it, or by the file in which an older version had it.
    near = {p: c for p, c in _CLASSES.items() if p.partition(".")[0] == package and p.rpartition(".")[2] == name}
    if len(near) == 1:
        return next(iter(near.values()))
    if near:
        raise LookupError(f"{target} could be any of {', '.join(near)}; name one of these")
    if package == _OWN:
        raise LookupError(f"{target}, which this version of {_OWN} doesn't have")
    raise LookupError(f"{target}, which is not known here; import {module}, or allow it: plugins=[{module}]")
