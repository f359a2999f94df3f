"""A run that goes on: with the settings that it had, and what is typed now on top of them."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from ph_l2o.checkpoints import KEY, read_checkpoint
from ph_l2o.commands.folders import LAST
from ph_l2o.commands.overrides import overrides_of
from ph_l2o.commands.recording import saved_config
from ph_l2o.errors import CheckpointError, ConfigError
from ph_l2o.recipes import targets

log = logging.getLogger(__name__)

_OF_THIS_START = ("ckpt_path", "hparams_search", "hydra")  # what is typed for one start alone
_FOLDER = ("paths", "output_dir")
_NOT_FROM_FILES = ("paths", "hydra", "logger", "callbacks", "plugins", "weights")
_CLASSES_OF_FILES = ("ph_l2o.", "torch.nn.", "torch.optim.", "pytorch_lightning.Trainer")
_EXPECTED = {_FOLDER, ("ckpt_path",)}  # to change
_ABSENT: Any = object()


def settings_of_run(cfg: DictConfig, checkpoint: Path) -> tuple[DictConfig, list[str]]:
    """The configuration of the run that a checkpoint is of, changed by what is typed now.

    What is typed changes what it would change in a composition of the same overrides, so that a group's option brings
    its presets. The run's own values stay, also where `conf/` has others by now.

    Args:
        cfg: As composed from what is typed now alone.
        checkpoint: Of the run. Its folder's `config.yaml` counts, or what the checkpoint itself says, whose plugins
            have to be typed anew.

    Returns:
        The configuration, and all overrides from which it comes.

    Raises:
        CheckpointError: If the checkpoint is needed and can't be read.
        ConfigError: If the run's configuration can't be read, or has plugins that are not typed.
        HydraException: If the overrides don't compose.
    """
    own = saved_config(checkpoint.absolute().parents[1]) if checkpoint.parent.name == LAST.parent.name else None
    run = _of_file(checkpoint, cfg.plugins) if own is None else own
    if new := [p for p in run.get("plugins") or [] if p not in cfg.plugins]:
        names = ", ".join(ascii(name)[1:-1][:100] for name in map(str, new))
        raise ConfigError(
            f"{checkpoint}: its run had plugins=[{names}]; type them, so that you have named what is imported"
        )
    run = copy.deepcopy({k: v for k, v in run.items() if k != "git_revision"})
    typed, before = typed_overrides(), list(run.pop("overrides", []))
    overrides = [o for o in before if _key(o) not in map(_key, typed)] + typed
    made = _merged(run, before, overrides, [_key(o).lstrip("+") for o in typed])
    made = _moved(made, _get(run, _FOLDER), cfg.paths.output_dir)
    made["ckpt_path"], made["paths"]["output_dir"] = cfg.ckpt_path, cfg.paths.output_dir
    _tell(run, made)
    result = DictConfig(made)
    OmegaConf.set_struct(result, True)
    return result, overrides


def _of_file(checkpoint: Path, plugins: Iterable[str]) -> dict[str, Any]:
    """The configuration in a checkpoint, which may be anybody's: what is trained and how, nothing that writes.

    Raises:
        CheckpointError: If it names other classes than this package, torch's networks and optimizers, and the modules
            that the user typed have.
    """
    config = read_checkpoint(checkpoint)[KEY]["config"]
    run = {k: v for k, v in config.items() if k not in _NOT_FROM_FILES}
    allowed = (*_CLASSES_OF_FILES, *(f"{plugin}." for plugin in plugins))
    for target in targets(run):
        if not target.startswith(allowed):
            raise CheckpointError(
                f"{checkpoint}: its configuration names {ascii(target)[1:-1][:100]}, which is not taken from a file; "
                "resume in the folder of the run, which has its config.yaml, or type plugins=[…] if the module is yours"
            )
    for target in targets(config.get("callbacks")):
        if target != "ph_l2o.meta.MetaProgress":
            log.warning("the callback %s is not taken from a file; type it to have it again", ascii(target)[1:-1][:100])
    overrides = [o for o in map(str, run.get("overrides") or []) if _root(o) not in _NOT_FROM_FILES]
    return run | {"overrides": overrides, "plugins": []}


def _tell(run: dict[str, Any], made: dict[str, Any]) -> None:
    """A line for each value that changes; new ones belong to a change, or to a newer version."""
    for key, value in sorted(_leaves(run).items()):
        now = _get(made, key)
        if value != now and key not in _EXPECTED:
            log.info("changed: %s: %s -> %s", ".".join(key), value, "left out" if now is _ABSENT else now)


def _merged(run: dict[str, Any], before: list[str], overrides: list[str], typed: list[str]) -> dict[str, Any]:
    """The run's configuration with what differs between the compositions of both overrides, or was typed itself."""
    name = HydraConfig.get().job.config_name
    then = _plain(compose(name, before))
    composed = compose(name, overrides, return_hydra_config=True)
    runtime: Any = HydraConfig.get().runtime
    with read_write(runtime), open_dict(runtime):
        runtime.choices = composed.hydra.runtime.choices
    with open_dict(composed):
        del composed["hydra"]
    now, values = _plain(composed), _plain(composed, resolve=True)
    made = copy.deepcopy(run)
    for key in {**_leaves(then), **_leaves(now)}:
        differs = _get(then, key) != _get(now, key) or ".".join(key) in typed
        if differs or _get(made, key) is _ABSENT:
            _set(made, key, _get(values, key))
    return made


def _moved(node: Any, old: Any, new: str) -> Any:
    """With another folder of the run in all values that begin with it."""
    if isinstance(node, Mapping):
        return {key: _moved(value, old, new) for key, value in node.items()}
    if isinstance(node, str) and isinstance(old, str) and (node + "/").startswith(old + "/"):
        return new + node[len(old) :]
    return node


def typed_overrides() -> list[str]:
    """What was typed of a run's settings, without what is for one start alone."""
    return [o for o in overrides_of(HydraConfig.get()) if _root(o) not in _OF_THIS_START]


def _root(override: str) -> str:
    """The first part of an override's key, or the group that it chooses an option of."""
    return re.split(r"[.@/]", _key(override).lstrip("+~"))[0]


def _key(override: str) -> str:
    return override.partition("=")[0]


def _plain(cfg: DictConfig, *, resolve: bool = False) -> dict[str, Any]:
    return OmegaConf.to_container(cfg, resolve=resolve)  # type: ignore[return-value]


Key = tuple[str, ...]


def _leaves(node: Mapping[str, Any], above: Key = ()) -> dict[Key, Any]:
    """The values of nested mappings, by the keys that lead to them."""
    found: dict[Key, Any] = {}
    for key, value in node.items():
        found |= _leaves(value, (*above, key)) if isinstance(value, Mapping) and value else {(*above, key): value}
    return found


def _get(node: Any, keys: Iterable[str]) -> Any:
    for key in keys:
        if not isinstance(node, Mapping) or key not in node:
            return _ABSENT
        node = node[key]
    return node


def _set(node: dict[str, Any], keys: Key, value: Any) -> None:
    """Set a value, or remove it, in nested dictionaries."""
    *above, last = keys
    for key in above:
        if not isinstance(node.get(key), dict):
            if value is _ABSENT:
                return
            node[key] = {}
        node = node[key]
    if value is _ABSENT:
        node.pop(last, None)
    else:
        node[last] = value
