"""Trained optimizers in files: `.ckpt` of a training, `.safetensors` of weights alone. Nothing in them is executed.

A `.safetensors` has in its metadata `recipe`, class and constructor arguments as JSON, and `trained_on`, JSON that is
only for people.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ph_l2o import recipes
from ph_l2o.errors import CheckpointError, WeightsError
from ph_l2o.files import write_atomically
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.port_hamiltonian import PortHamiltonian  # noqa: F401  # with its module, all optimizers are known by name

FOLDER = Path(__file__).with_name("weights")
SHIPPED = {"port_hamiltonian": "default", "port_hamiltonian_kronecker": "kronecker"}  # by the optimizer's name
KEY = "ph_l2o"  # of what a checkpoint has beside Lightning's own
_PREFIX = "optimizer."  # of the optimizer's weights among the learner's


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of a training.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged, or was not written by ph_l2o.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can break the reader anywhere
        raise CheckpointError(
            f"{path}: damaged, or no checkpoint ({type(error).__name__}); use another, or train anew"
        ) from error
    if not isinstance(content, dict) or KEY not in content or "state_dict" not in content:
        raise CheckpointError(f"{path}: not a checkpoint of ph_l2o; give a best.ckpt or last.ckpt that train.py wrote")
    return content


def load_checkpoint(path: str | Path, *, plugins: Iterable[str] = ()) -> tuple[LearnedOptimizer, dict[str, Any]]:
    """The trained optimizer in a checkpoint, rebuilt from its own configuration, and that configuration.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged, or of an optimizer that is not known here.
    """
    content = read_checkpoint(path)
    config = content[KEY]["config"]
    if not config.get("optimizer"):
        raise CheckpointError(f"{path}: holds no configuration of its optimizer, so it can't be rebuilt from the file")
    weights = {k.removeprefix(_PREFIX): v for k, v in content["state_dict"].items() if k.startswith(_PREFIX)}
    return _rebuilt(path, config["optimizer"], weights, CheckpointError, plugins), config


def load_weights(pretrained: str | Path, *, plugins: Iterable[str] = ()) -> LearnedOptimizer:
    """The trained optimizer in a file.

    Args:
        pretrained: `default` or `kronecker`, weights in this package, or the path of a `.safetensors` of `save_weights`
            or of a `.ckpt` of a training.
        plugins: Packages besides this one that may be imported for the optimizer's class.

    Raises:
        FileNotFoundError: If there is no such file.
        WeightsError: If the file is damaged, or of an optimizer that is not known here.
    """
    path = FOLDER / f"{pretrained}.safetensors" if pretrained in SHIPPED.values() else Path(pretrained)
    if not path.is_file():
        names = ", ".join(SHIPPED.values())
        raise FileNotFoundError(f"pretrained={pretrained}: no such file; give {names}, a .safetensors or a .ckpt")
    if path.suffix != ".safetensors":
        try:
            return load_checkpoint(path, plugins=plugins)[0]
        except CheckpointError as error:
            raise WeightsError(str(error)) from error
    metadata, tensors = _read(path)
    return _rebuilt(path, _recipe(path, metadata), tensors, WeightsError, plugins)


def save_weights(optimizer: LearnedOptimizer, path: str | Path, *, trained_on: Any = None) -> Path:
    """Write an optimizer, for `load_weights`.

    Args:
        optimizer: With constructor arguments that are plain values.
        path: Must end in `.safetensors`.
        trained_on: What can be written as JSON, for people.

    Raises:
        ValueError: If the path ends otherwise, or the optimizer can't be rebuilt from a file.
    """
    from safetensors.torch import save

    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: must end in .safetensors")
    if not optimizer.recipe:
        name = type(optimizer).__name__
        what = "its class must be of a module, its arguments plain values"
        raise ValueError(f"{name}: can't be rebuilt from a file; {what}")
    metadata = {"recipe": json.dumps(optimizer.recipe), "trained_on": json.dumps(trained_on)}
    tensors = {name: x.detach().cpu().contiguous() for name, x in optimizer.state_dict().items()}
    return write_atomically(path, save(tensors, metadata))


def describe(path: str | Path) -> dict[str, Any]:
    """The metadata of a `.safetensors`, read as JSON: `recipe` and `trained_on`.

    Raises:
        WeightsError: If the file is damaged.
    """
    metadata, _ = _read(Path(path))
    return {"recipe": _recipe(Path(path), metadata), "trained_on": json.loads(metadata.get("trained_on", "null"))}


def _rebuilt(
    path: str | Path,
    recipe: dict[str, Any],
    weights: dict[str, Tensor],
    error_type: type[CheckpointError | WeightsError],
    plugins: Iterable[str],
) -> LearnedOptimizer:
    target = recipe[recipes.TARGET]
    try:
        optimizer = recipes.construct(recipe, plugins=plugins)
    except LookupError as error:
        raise error_type(f"{path}: is of {error.args[0]}") from error
    except ImportError as error:
        raise error_type(f"{path}: is of {target}, which can't be imported ({error})") from error
    except (TypeError, ValueError) as error:
        raise error_type(f"{path}: {target} of this version of ph_l2o doesn't take its arguments ({error})") from error
    try:
        optimizer.load_state_dict(weights)
    except RuntimeError as error:
        raise error_type(f"{path}: its weights don't fit {target} of this version of ph_l2o") from error
    if not all(p.isfinite().all() for p in optimizer.parameters()):
        raise error_type(f"{path}: has weights that are not finite")
    return optimizer.eval()


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
        assert isinstance(recipe[recipes.TARGET], str)
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise WeightsError(f"{path}: not written by ph_l2o, it doesn't say which optimizer it is of") from error
    return recipe
