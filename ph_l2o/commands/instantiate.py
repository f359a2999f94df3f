"""Objects from a configuration: classes of known packages, each of the kind that its place asks for."""

from __future__ import annotations

import functools
import importlib
import inspect
import types
import typing
from collections.abc import Iterable
from typing import Any

from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import Logger
from pytorch_lightning.profilers import Profiler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ph_l2o.checks import did_you_mean
from ph_l2o.errors import ConfigError
from ph_l2o.estimators import Estimator
from ph_l2o.meta import MetaSettings, wandb_logger
from ph_l2o.optimizers import LearnedOptimizer
from ph_l2o.tasks import Task

_TARGET, _PARTIAL, _POSITIONAL = "_target_", "_partial_", "_args_"
_PACKAGES = ("ph_l2o", "torch", "pytorch_lightning")

# What a place asks for, by the last word of its key, or by the word before where members have names of their own.
_KINDS: dict[str, type] = {
    "task": Task, "optimizer": LearnedOptimizer, "estimator": Estimator, "meta": MetaSettings, "trainer": Trainer,
    "model": nn.Module, "objective": nn.Module, "outer_optimizer": Optimizer, "schedule": LRScheduler,
    "profiler": Profiler,
}  # fmt: skip
_KINDS_OF_MEMBERS: dict[str, type] = {"tasks": Task, "callbacks": Callback, "logger": Logger}
_ANY = tuple(dict.fromkeys((*_KINDS.values(), *_KINDS_OF_MEMBERS.values())))
_FUNCTIONS = (wandb_logger,)  # of this package, that make what their place asks for


def build(node: Any, key: str = "", *, plugins: Iterable[str] = ()) -> Any:
    """Instantiate a configuration node, after checking every `_target_` in it and the types of its arguments.

    A `_target_` is a class of ph_l2o, torch, pytorch_lightning or the modules in `plugins`, named by its module, and of
    the kind that its place asks for: the key `task` a `Task`, and so on, at every depth. Functions are taken only where
    a module in `plugins` defines them. With `_partial_: true` it is not called, and `_args_` has arguments by place.

    Args:
        node: The configuration.
        key: Where it stands, as in `task` or `callbacks.progress`; without one, any known kind is taken.
        plugins: Modules of the user's; they are imported, so that what they register is there.

    Raises:
        ConfigError: If a target is none of these, or doesn't fit its arguments; if a plugin cannot be imported.
    """
    from omegaconf import OmegaConf

    plugins = tuple(plugins)
    import_plugins(plugins)
    plain: Any = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    return _made(plain, key, plugins)


def build_loggers(cfg: Any) -> list[Logger]:
    """The loggers of a configuration; they may begin to write.

    Raises:
        ConfigError: As `build`.
    """
    nodes = {name: node for name, node in (cfg.logger or {}).items() if node}
    return [build(node, f"logger.{name}", plugins=cfg.plugins) for name, node in nodes.items()]


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


def _made(node: Any, key: str, plugins: tuple[str, ...]) -> Any:
    if isinstance(node, list):
        return [_made(value, key, plugins) for value in node]
    if not isinstance(node, dict):
        return node
    if _TARGET not in node:
        return {name: _made(value, _below(key, name), plugins) for name, value in node.items()}
    kind = _kind(key)
    target = _found(node[_TARGET], key, kind, plugins)
    _check_arguments(node, target, key)
    values = {n: _made(v, _below(key, n), plugins) for n, v in node.items() if n not in (_TARGET, _PARTIAL)}
    positional = values.pop(_POSITIONAL, [])
    if node.get(_PARTIAL):
        return functools.partial(target, *positional, **values)
    made = _called(target, positional, values, key)
    if kind is not None and not isinstance(made, kind):
        raise ConfigError(f"{_shown(key, node[_TARGET])}: makes a {type(made).__name__}; must make a {_name(kind)}")
    return made


def _below(key: str, name: Any) -> str:
    return f"{key}.{name}".lstrip(".")


def _kind(key: str) -> type | None:
    """What a place asks for; None where any known kind will do."""
    *path, last = key.split(".")
    return _KINDS_OF_MEMBERS.get(path[-1] if path else "") or _KINDS.get(last) or _KINDS_OF_MEMBERS.get(last)


def _name(kind: type) -> str:
    return f"{kind.__module__.partition('.')[0]} {kind.__name__}"


def _shown(key: str, target: Any) -> str:
    return f"{_below(key, _TARGET)}={target}"


def _found(target: Any, key: str, kind: type | None, plugins: tuple[str, ...]) -> Any:
    """The class that a `_target_` names, by a module and a name in it: nothing is looked up through other objects."""
    module, _, name = str(target).rpartition(".")
    package, shown = module.partition(".")[0], _shown(key, target)
    is_plugin = any(module == plugin or module.startswith(f"{plugin}.") for plugin in plugins)
    if package not in _PACKAGES and not is_plugin:
        raise ConfigError(
            f"{shown}: must be in one of {', '.join((*_PACKAGES, *plugins))}; "
            f"allow another module with 'plugins=[{module or name}]'"
        )
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{shown}: there is no such class ({error}); name one by its module") from error
    own = is_plugin and getattr(found, "__module__", "").partition(".")[0] == package
    if not isinstance(found, type):
        if found in _FUNCTIONS or (own and isinstance(found, types.FunctionType)):
            return found
        raise ConfigError(f"{shown}: is no class; only modules in plugins may have functions")
    if kind is None and not own and not issubclass(found, _ANY):
        raise ConfigError(f"{shown}: must be one of {', '.join(map(_name, _ANY))}")
    if kind is not None and not issubclass(found, kind):
        raise ConfigError(f"{shown}: must be a {_name(kind)}")
    return found


def _called(target: Any, positional: list[Any], values: dict[str, Any], key: str) -> Any:
    try:
        return target(*positional, **values)
    except ValueError:  # names the key itself
        raise
    except ImportError as error:  # of a logger, such as TensorBoard's
        text = str(error).splitlines()[0]
        what = f"{target.__module__}.{target.__qualname__}"
        raise ConfigError(f"{key}: {what} needs a package that is not installed ({text})") from error
    except Exception as error:  # whatever a constructor raises is said in one line
        raise ConfigError(f"{target.__module__}.{target.__qualname__}: {error}") from error


_WORDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}


def _check_arguments(node: dict[str, Any], target: Any, key: str) -> None:
    """Compare the arguments with the constructor's plain annotations, and name the key of one that doesn't fit."""
    try:
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (AttributeError, NameError, TypeError):
        hints = {}
    accepted = _accepted(target)
    for name, value in node.items():
        if name in (_TARGET, _PARTIAL, _POSITIONAL):
            continue
        if str(name).startswith("_") or (accepted is not None and name not in accepted):
            hint = did_you_mean(name, accepted or ())
            raise ConfigError(f"{_below(key, name)}: no such argument of {node[_TARGET]}{hint}")
        hint = hints.get(name)
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        plain = [o for o in options if o in _WORDS or o is type(None)]
        if plain and len(plain) == len(options) and not any(_fits(value, o) for o in plain):
            words = " or ".join(_WORDS.get(o, "null") for o in plain)
            raise ConfigError(f"{_below(key, name)}={value}: must be {words}")


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
