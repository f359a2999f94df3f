"""Trained weights in `.safetensors` files, with what is needed to rebuild the optimizer; nothing in them is executed.

The metadata has `recipe`, class and constructor arguments as JSON, and `trained_on`, JSON that is only for people.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from ph_l2o.optimizers.base import LearnedOptimizer

FOLDER = Path(__file__).with_name("weights")
SHIPPED = {"port_hamiltonian": "default", "port_hamiltonian_kronecker": "kronecker"}  # by the optimizer's name
_PACKAGE = "ph_l2o.optimizers."


class WeightsError(RuntimeError):
    """A file holds no weights that can be used; the text says why."""


def load_weights(pretrained: str | Path) -> LearnedOptimizer:
    """The trained optimizer in a file.

    Args:
        pretrained: `default` or `kronecker`, weights in this package, or the path of a `.safetensors` of `save_weights`
            or of a `.ckpt` of a training.

    Raises:
        FileNotFoundError: If there is no such file.
        WeightsError: If the file is damaged, or not of an optimizer of this version.
    """
    path = FOLDER / f"{pretrained}.safetensors" if pretrained in SHIPPED.values() else Path(pretrained)
    if not path.is_file():
        names = ", ".join(SHIPPED.values())
        raise FileNotFoundError(f"pretrained={pretrained}: no such file; give {names}, a .safetensors or a .ckpt")
    if path.suffix != ".safetensors":
        return _of_checkpoint(path)
    metadata, tensors = _read(path)
    recipe = _recipe(path, metadata)
    optimizer = _construct(path, recipe)
    try:
        optimizer.load_state_dict(tensors)
    except RuntimeError as error:
        raise WeightsError(f"{path}: its weights don't fit {recipe['_target_']} of this version of ph_l2o") from error
    if not all(p.isfinite().all() for p in optimizer.parameters()):
        raise WeightsError(f"{path}: has weights that are not finite")
    return optimizer.eval()


def save_weights(optimizer: LearnedOptimizer, path: str | Path, *, trained_on: Any = None) -> Path:
    """Write an optimizer of `ph_l2o.optimizers`, for `load_weights`.

    Args:
        optimizer: With constructor arguments that are plain values.
        path: Must end in `.safetensors`.
        trained_on: What can be written as JSON, for people.

    Raises:
        ValueError: If the path ends otherwise, or the optimizer can't be rebuilt from a file.
    """
    from safetensors.torch import save

    from ph_l2o.evaluation.files import write_atomically

    path, recipe = Path(path), optimizer.recipe
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: must end in .safetensors")
    if not str(recipe.get("_target_", "")).startswith(_PACKAGE):
        raise ValueError(f"{type(optimizer).__name__}: can't be rebuilt from a file; only {_PACKAGE}* can")
    metadata = {"recipe": json.dumps(recipe), "trained_on": json.dumps(trained_on)}
    tensors = {name: x.detach().cpu().contiguous() for name, x in optimizer.state_dict().items()}
    return write_atomically(path, save(tensors, metadata))


def describe(path: str | Path) -> dict[str, Any]:
    """The metadata of a file, read as JSON: `recipe` and `trained_on`.

    Raises:
        WeightsError: If the file is damaged.
    """
    metadata, _ = _read(Path(path))
    return {"recipe": _recipe(Path(path), metadata), "trained_on": json.loads(metadata.get("trained_on", "null"))}


def _of_checkpoint(path: Path) -> LearnedOptimizer:
    from ph_l2o.commands.checkpoint import CheckpointError, load_optimizer

    try:
        return load_optimizer(path)[0]
    except CheckpointError as error:
        raise WeightsError(str(error)) from error


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # a damaged file can break the reader anywhere
        raise WeightsError(f"{path}: damaged, or no .safetensors ({type(error).__name__})") from error


def _recipe(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    try:
        recipe = json.loads(metadata["recipe"])
        assert isinstance(recipe["_target_"], str)
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise WeightsError(f"{path}: not written by ph_l2o, it doesn't say which optimizer it is of") from error
    return recipe


def _construct(path: Path, recipe: dict[str, Any]) -> LearnedOptimizer:
    """Only classes that `ph_l2o.optimizers` exports; no name from a file is imported."""
    from ph_l2o import optimizers

    known = {
        f"{cls.__module__}.{cls.__qualname__}": cls
        for cls in vars(optimizers).values()
        if isinstance(cls, type) and issubclass(cls, LearnedOptimizer)
    }
    target, arguments = recipe["_target_"], {k: v for k, v in recipe.items() if k != "_target_"}
    if target not in known:
        raise WeightsError(f"{path}: is of {target}, which this version of ph_l2o doesn't have")
    try:
        return known[target](**arguments)
    except (TypeError, ValueError) as error:
        raise WeightsError(
            f"{path}: {target} of this version of ph_l2o doesn't take its arguments ({error})"
        ) from error
