"""Where the weights of a claim's trainings are, and whether they were made with the settings that are asked for.

A training's run is in `FOLDER/<name>`; what was trained earlier is also in a `.safetensors` beside the results, which
says with which settings. The run counts first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ph_l2o import recipes
from ph_l2o.checkpoints import describe, load_checkpoint, load_weights, save_weights
from ph_l2o.checksums import checksum
from ph_l2o.errors import ConfigError
from ph_l2o.files import json_text, without_folders
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer

BEST = Path("checkpoints") / "best.ckpt"
# What decides a training's weights. Folders, loggers, compilation and the comparison do not.
_DECIDES = ("task", "optimizer", "estimator", "meta", "seed", "weights", "overrides")
_PLACES = ("data_dir",)


class Found(NamedTuple):
    """Weights of a training.

    Attributes:
        path: The file.
        optimizer: It.
        settings: With which it was trained.
    """

    path: Path
    optimizer: LearnedOptimizer
    settings: dict[str, Any]


def settings_of(config: Mapping[str, Any], overrides: tuple[str, ...]) -> dict[str, Any]:
    """What decides a training's weights.

    Args:
        config: The resolved configuration.
        overrides: Those that the claim has for the training.
    """
    kept = {key: config.get(key) for key in _DECIDES if key != "overrides"}
    kept["precision"] = (config.get("trainer") or {}).get("precision")
    return json.loads(json_text(without_folders({**_without_places(kept), "overrides": list(overrides)})))


def differing_key(now: Mapping[str, Any], then: Mapping[str, Any]) -> str | None:
    """The first setting that differs, with both values; None if the weights are those that are asked for.

    A key that only one of them has is an option that is newer than the training, or is gone, if the overrides are the
    same; else it differs.
    """
    both = _leaves({k: v for k, v in now.items() if k != "overrides"})
    before = _leaves({k: v for k, v in then.items() if k != "overrides"})
    for key in both:
        if key in before and both[key] != before[key]:
            return f"{key} ({_shown(before[key])}, now {_shown(both[key])})"
    if sorted(now.get("overrides") or []) == sorted(then.get("overrides") or []):
        return None
    return next((key for key in {**both, **before} if (key in both) != (key in before)), None)


def of_run(folder: Path, settings: Mapping[str, Any], *, plugins: tuple[str, ...] = ()) -> Found:
    """The best weights of a finished run.

    Raises:
        ConfigError: If it has none.
        CheckpointError: If the file is damaged.
    """
    path = folder / BEST
    if not path.is_file():
        raise ConfigError(f"{folder}: its training never had a finite validation, so it has no checkpoints/best.ckpt")
    return Found(path, load_checkpoint(path, plugins=plugins)[0], dict(settings))


def of_file(path: Path, settings: Mapping[str, Any], *, plugins: tuple[str, ...] = ()) -> Found | None:
    """Weights beside the results; None if there is no such file.

    Raises:
        ConfigError: If they were made with other settings.
        WeightsError: If the file is damaged.
    """
    if not path.is_file():
        return None
    if key := difference_of_file(path, settings):
        raise ConfigError(
            f"{path}: was trained with other settings of {key}; move it away, so that train.py makes another, or set "
            "the claim as it was"
        )
    return Found(path, load_weights(path, plugins=plugins), dict(settings))


def difference_of_file(path: Path, settings: Mapping[str, Any]) -> str | None:
    """The setting in which weights beside the results differ; None if they are what is asked for.

    Raises:
        WeightsError: If the file is damaged.
    """
    trained_on = describe(path)["trained_on"]
    then = trained_on.get("settings") if isinstance(trained_on, dict) else None
    return differing_key(settings, then) if isinstance(then, dict) else "anything (it does not say which it had)"


def export(found: Found, path: Path) -> None:
    """Write weights beside the results, unless they are there already."""
    if path.is_file() and found.path == path:
        return
    if path.is_file() and difference_of_file(path, found.settings) is None:
        there = load_weights(path)
        if checksum(dict(there.state_dict())) == checksum(dict(found.optimizer.state_dict())):
            return
    save_weights(found.optimizer, path, trained_on={"training": path.stem, "settings": found.settings})


def weights_sum(optimizer: LearnedOptimizer) -> str:
    """A checksum of an optimizer's weights."""
    return checksum(dict(optimizer.state_dict()))[:16]


def with_changes(optimizer: LearnedOptimizer, changes: Mapping[str, Any], *, plugins: tuple[str, ...] = ()) -> Any:
    """A trained optimizer with other constructor arguments, as one that is run with another `output_scale` by mistake.

    Raises:
        ConfigError: If its class has no such argument, or the weights do not fit it.
    """
    if not changes:
        return optimizer
    for key in changes:
        if key not in optimizer.recipe:
            known = ", ".join(k for k in optimizer.recipe if k != recipes.TARGET)
            raise ConfigError(f"set.{key}={changes[key]}: {type(optimizer).__name__} was made with {known}")
    made = recipes.construct({**optimizer.recipe, **changes}, plugins=plugins)
    try:
        made.load_state_dict(optimizer.state_dict())
    except RuntimeError as error:
        raise ConfigError(f"set={dict(changes)}: the trained weights do not fit it") from error
    return made.eval()


def _without_places(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {k: _without_places(v) for k, v in node.items() if k not in _PLACES}
    return [_without_places(v) for v in node] if isinstance(node, list | tuple) else node


def _leaves(node: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= _leaves(value, f"{above}{key}.") if isinstance(value, Mapping) and value else {above + key: value}
    return found


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
