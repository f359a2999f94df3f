"""Objects from plain values, through a table of known classes: no name from a file is ever imported.

A recipe is a mapping of `_target_`, the class, and of constructor arguments: what JSON can hold, and further recipes.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Iterable, Mapping
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


def construct(made: Mapping[str, Any], *, plugins: Iterable[str] = ()) -> Any:
    """The object of a recipe.

    Args:
        made: The recipe.
        plugins: Packages that are imported if the class is of one of them.

    Raises:
        LookupError: If the class is not known; the text says what to do.
        TypeError: If the class does not take these arguments.
        ValueError: If one of them is out of range.
    """
    target, plugins = str(made.get(TARGET)), tuple(plugins)
    arguments = {
        k: construct(v, plugins=plugins) if isinstance(v, Mapping) and TARGET in v else v
        for k, v in made.items()
        if k != TARGET
    }
    return _found(target, plugins)(**arguments)


def _found(target: str, plugins: tuple[str, ...]) -> type:
    package, name = target.partition(".")[0], target.rpartition(".")[2]
    if package in plugins:
        importlib.import_module(package)
        module = target.rpartition(".")[0]
        if target not in _CLASSES and module:
            importlib.import_module(module)
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
    raise LookupError(f"{target}, which is not known here; import {package}, or allow it: plugins=[{package}]")
