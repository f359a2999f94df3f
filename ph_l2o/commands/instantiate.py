"""Objects from configuration, from known packages only."""

from __future__ import annotations

import importlib
import inspect
import types
import typing
from collections.abc import Iterable
from typing import Any

from ph_l2o.checks import did_you_mean
from ph_l2o.errors import ConfigError

_ALLOWED = ("ph_l2o", "torch", "pytorch_lightning")


def build(node: Any, key: str = "", *, plugins: Iterable[str] = ()) -> Any:
    """Instantiate a configuration node, after checking every `_target_` in it and the types of its arguments.

    Configuration also comes out of checkpoints, and a `_target_` is code execution: only classes of ph_l2o, torch,
    pytorch_lightning and the packages named in `plugins` are allowed; the latter are imported, so that what they
    register is there.

    Raises:
        ConfigError: If a target is outside of these, or doesn't fit its arguments; if a plugin cannot be imported.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    import_plugins(plugins)
    plain: Any = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    _check_targets(plain, (*_ALLOWED, *plugins))
    _check_types(plain, key)
    try:
        return instantiate(plain, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ValueError):
            raise cause from None
        if isinstance(cause, ImportError):  # of a logger, such as TensorBoard's
            text = str(cause).splitlines()[0]
            raise ConfigError(f"{key}: {plain['_target_']} needs a package that is not installed ({text})") from error
        raise ConfigError(f"{plain['_target_']}: {cause or str(error).splitlines()[0]}") from error


def import_plugins(plugins: Iterable[str]) -> None:
    """Import modules of the user's, so that what they register is there.

    Raises:
        ConfigError: If one cannot be imported.
    """
    for name in plugins:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(f"plugins=[…, {name}]: cannot be imported ({error}); is it on PYTHONPATH?") from error


def _check_targets(node: Any, allowed: tuple[str, ...]) -> None:
    if isinstance(node, dict):
        target = node.get("_target_")
        if target is not None and str(target).split(".")[0] not in allowed:
            raise ConfigError(
                f"_target_={target}: must be in one of {', '.join(allowed)}; "
                f"allow another package with 'plugins=[{str(target).split('.')[0]}]'"
            )
        for value in node.values():
            _check_targets(value, allowed)
    elif isinstance(node, list):
        for value in node:
            _check_targets(value, allowed)


_WORDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}


def _check_types(node: dict[str, Any], key: str) -> None:
    """Compare the arguments with the constructor's plain annotations, and name the key of one that doesn't fit."""
    from hydra.errors import HydraException
    from hydra.utils import get_object

    try:
        target = get_object(node["_target_"])
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (HydraException, ImportError, AttributeError, NameError, TypeError):
        return  # instantiate says what is wrong
    accepted = _accepted(target)
    for name, value in node.items():
        if accepted is not None and not name.startswith("_") and name not in accepted:
            hint = did_you_mean(name, accepted)
            raise ConfigError(f"{key}.{name}: no such argument of {node['_target_']}{hint}".lstrip("."))
        hint = hints.get(name)
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        plain = [o for o in options if o in _WORDS or o is type(None)]
        if plain and len(plain) == len(options) and not any(_fits(value, o) for o in plain):
            words = " or ".join(_WORDS.get(o, "null") for o in plain)
            raise ConfigError(f"{key}.{name}={value}: must be {words}".lstrip("."))


def _accepted(target: Any) -> list[str] | None:
    """Names of the arguments; None where any is accepted."""
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # of builtins
        return None
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return None
    return list(parameters)


def _fits(value: Any, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))
