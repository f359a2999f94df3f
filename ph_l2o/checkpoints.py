"""Trained optimizers in files: `.ckpt` of a training, `.safetensors` of weights alone. Nothing in them is executed.

A `.safetensors` has in its metadata `recipe`, class and constructor arguments as JSON, `trained_on`, JSON that is only
for people, and `sha256`, a checksum of all that. Checkpoints have one too. Files from before have none, and are read.
"""

from __future__ import annotations

import contextlib
import json
import threading
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration

from ph_l2o import recipes
from ph_l2o.checksums import checksum
from ph_l2o.errors import CheckpointError, WeightsError
from ph_l2o.files import write_atomically
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.port_hamiltonian import PortHamiltonian  # noqa: F401  # with its module, all optimizers are known by name

FOLDER = Path(__file__).with_name("weights")
SHIPPED = {"port_hamiltonian": "default", "port_hamiltonian_kronecker": "kronecker"}  # by the optimizer's name
KEY = "ph_l2o"  # of what a checkpoint has beside Lightning's own
SUM = "sha256"
_LARGEST = 1e18  # a weight whose square overflows float32 is none
_REMEDY = "use another, or train anew"


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of a training, and check what it holds.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged, or was not written by ph_l2o.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {'no file' if path.exists() else 'no such checkpoint'}; give a best.ckpt")
    try:
        _check_archive(path)
        content = _in_memory(torch.load(path, map_location="cpu", weights_only=True, mmap=True), path.stat().st_size)
        found = checksum(_without_sum(content))
    except Exception as error:  # a damaged file can break the reader anywhere
        reason = str(error) if isinstance(error, _DamageError) else type(error).__name__
        raise CheckpointError(f"{path}: damaged, or no checkpoint ({reason}); {_REMEDY}") from error
    if not isinstance(content, dict) or not {KEY, "state_dict"} <= set(content):
        raise CheckpointError(f"{path}: not a checkpoint of ph_l2o; give a best.ckpt or last.ckpt that train.py wrote")
    if problem := _problem_of_checkpoint(content, found):
        raise CheckpointError(f"{path}: damaged, {problem}; {_REMEDY}")
    return content


def add_checksum(checkpoint: dict[str, Any]) -> None:
    """Add the checksum that `read_checkpoint` compares with; before the checkpoint is written, when all is in it."""
    checkpoint[KEY][SUM] = checksum(_without_sum(checkpoint))


def load_checkpoint(path: str | Path, *, plugins: Iterable[str] = ()) -> tuple[LearnedOptimizer, dict[str, Any]]:
    """The trained optimizer in a checkpoint, rebuilt from its own configuration, and that configuration.

    Args:
        path: The file.
        plugins: Modules besides this package that may be imported for the optimizer's class.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged, or of an optimizer that is not known here.
    """
    content = read_checkpoint(path)
    config = content[KEY]["config"]
    if not config.get("optimizer"):
        raise CheckpointError(f"{path}: holds no configuration of its optimizer, so it can't be rebuilt; {_REMEDY}")
    return _rebuilt(path, config["optimizer"], weights_of(content), CheckpointError, plugins), config


def weights_of(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The optimizer's weights in a checkpoint, by their names in the optimizer."""
    prefix = "optimizer."
    return {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}


def load_weights(pretrained: str | Path, *, plugins: Iterable[str] = ()) -> LearnedOptimizer:
    """The trained optimizer in a file.

    Args:
        pretrained: `default` or `kronecker`, weights in this package, or the path of a `.safetensors` of `save_weights`
            or of a `.ckpt` of a training.
        plugins: Modules besides this package that may be imported for the optimizer's class.

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
        ValueError: If the path ends otherwise, the optimizer can't be rebuilt from a file, or its weights are not
            finite.
    """
    from safetensors.torch import save

    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: must end in .safetensors")
    if not optimizer.recipe:
        name = type(optimizer).__name__
        what = "its class must be of a module, its arguments plain values"
        raise ValueError(f"{name}: can't be rebuilt from a file; {what}")
    tensors = {name: x.detach().cpu().contiguous() for name, x in optimizer.state_dict().items()}
    if problem := problem_of_weights(tensors, tensors):
        raise ValueError(f"{path}: not written, since the optimizer's {problem}")
    metadata = {"recipe": json.dumps(optimizer.recipe), "trained_on": json.dumps(trained_on)}
    return write_atomically(path, save(tensors, metadata | {SUM: _sum(metadata, tensors)}))


def describe(path: str | Path) -> dict[str, Any]:
    """The metadata of a `.safetensors`, read as JSON: `recipe` and `trained_on`.

    Raises:
        WeightsError: If the file is damaged.
    """
    path = Path(path)
    metadata, _ = _read(path)
    recipe = _recipe(path, metadata)
    try:
        return {"recipe": recipe, "trained_on": json.loads(metadata.get("trained_on", "null"))}
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: damaged, its `trained_on` is no JSON; {_REMEDY}") from error


class _DamageError(Exception):
    """What is wrong with a file, in a few words."""


def _check_archive(path: Path) -> None:
    """Compare all parts of a file of `torch.save` with their CRC sums; torch's reader does not."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise _DamageError("compressed")
        if sum(part.file_size for part in parts) > path.stat().st_size:
            raise _DamageError("parts larger than the file")
        if bad := archive.testzip():
            raise _DamageError(f"{ascii(bad)[1:-1][:100]} has another CRC sum")


def _in_memory(content: Any, size: int) -> Any:
    """A copy of what is mapped from a file of `size` bytes."""
    copies: dict[int, Any] = {}  # of what is in several places, by what it is a copy of

    def copy(value: Any, depth: int) -> Any:
        if depth > 100:
            raise _DamageError("nested too deeply")
        if id(value) not in copies:
            copies[id(value)] = copied(value, depth)
        return copies[id(value)]

    def copied(value: Any, depth: int) -> Any:
        if isinstance(value, Tensor):
            plain = value.device.type == "cpu" and value.layout == torch.strided and not value.is_quantized
            if not plain or value.numel() * value.element_size() > 64 * size:
                raise _DamageError(f"a tensor of shape {tuple(value.shape)} that it can't hold")
            return value.detach().clone()
        if isinstance(value, dict):
            return {k: copy(v, depth + 1) for k, v in value.items()}
        if type(value) in (list, tuple):
            return type(value)(copy(v, depth + 1) for v in value)
        return value

    return copy(content, 0)


def _without_sum(content: Any) -> Any:
    own = content.get(KEY) if isinstance(content, dict) else None
    if not isinstance(own, dict):
        return content
    return {**content, KEY: {k: v for k, v in own.items() if k != SUM}}


def _problem_of_checkpoint(content: dict[str, Any], found: str) -> str | None:
    own = content[KEY]
    if not isinstance(own, dict) or not isinstance(own.get("config"), dict):
        return "without a configuration"
    if SUM in own and own[SUM] != found:
        return "its content has another checksum than when it was written"
    try:
        config = json.dumps(own["config"])
    except (TypeError, ValueError):
        return "its configuration has values that are not plain"
    if "${" in config:
        return "its configuration has interpolations, which are not resolved from a file"
    if not isinstance(content["state_dict"], dict) or not all(isinstance(k, str) for k in content["state_dict"]):
        return "without weights by name"
    return problem_of_weights(content["state_dict"], content["state_dict"])


def problem_of_weights(found: Mapping[str, Any], expected: Mapping[str, Tensor]) -> str | None:
    """What is wrong with weights, beside those that are expected."""
    if set(found) != set(expected):
        return f"weights don't fit, of {len(expected)} tensors {len(set(expected) - set(found))} are missing"
    for name, x in found.items():
        shown, like = ascii(name)[1:-1][:100], expected[name]
        if not isinstance(x, Tensor):
            return f"weights don't fit, {shown} is a {type(x).__name__}"
        if x.shape != like.shape:
            return f"weights don't fit, {shown} has shape {tuple(x.shape)}, expected {tuple(like.shape)}"
        if not _same_kind(x.dtype, like.dtype):
            return f"weights don't fit, {shown} is {x.dtype}, expected {like.dtype}"
        if x.is_floating_point() and not x.isfinite().all():
            return f"weights are not finite, in {shown}"
        if x.is_floating_point() and x.numel() and x.abs().max() > _LARGEST:
            return f"weights are larger than {_LARGEST:g}, in {shown}"
    return None


def _same_kind(found: torch.dtype, expected: torch.dtype) -> bool:
    whole = (torch.float32, torch.float64)  # a training in float64 gives weights to one in float32
    return found == expected or (found in whole and expected in whole)


def _rebuilt(
    path: str | Path,
    recipe: dict[str, Any],
    weights: dict[str, Tensor],
    error_type: type[CheckpointError | WeightsError],
    plugins: Iterable[str],
) -> LearnedOptimizer:
    if not isinstance(recipe, dict):
        raise error_type(f"{path}: damaged, doesn't say of which optimizer it is; {_REMEDY}")
    target, plugins = recipe.get(recipes.TARGET), tuple(plugins)
    recipe = _without_pace(path, recipe)
    try:
        _check_size(recipe, plugins, weights)
        optimizer = recipes.construct(recipe, plugins=plugins)
    except _DamageError as error:
        raise error_type(
            f"{path}: its weights don't fit {target} of this version of ph_l2o ({error}); {_REMEDY}"
        ) from error
    except ImportError as error:
        raise error_type(f"{path}: is of {target}, which can't be imported ({error})") from error
    except Exception as error:  # the arguments come from a file, and can break a constructor anywhere
        if type(error) is LookupError:
            raise error_type(f"{path}: is of {error}; {_REMEDY}") from error
        reason = f"{error}".partition("\n")[0][:300]
        raise error_type(
            f"{path}: {target} of this version of ph_l2o doesn't take its arguments ({reason}); {_REMEDY}"
        ) from error
    if problem := problem_of_weights(weights, optimizer.state_dict()):
        raise error_type(f"{path}: of {target}, but its {problem}; {_REMEDY}")
    optimizer.load_state_dict(weights)
    return optimizer.eval()


def _without_pace(path: str | Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe without an argument that port-Hamiltonian optimizers once had; a pace that did something is told.

    Whatever isn't a pace stays, for the optimizer to refuse.
    """
    match recipe:
        case {recipes.TARGET: str() as target, "pace": [int() | float() as rate, int() | float() as decay]}:
            if not target.startswith("ph_l2o."):
                return recipe
        case _:
            return recipe
    if rate or decay:
        text = f"{path}: its pace={[rate, decay]} is left out, since there is none any more; give total_steps instead"
        warnings.warn(text, stacklevel=5)
    return {key: value for key, value in recipe.items() if key != "pace"}


def _check_size(recipe: dict[str, Any], plugins: tuple[str, ...], weights: Mapping[str, Tensor]) -> None:
    """Construct without memory first, and stop once there are more weights than the file has."""
    with _at_most(len(weights), sum(x.numel() for x in weights.values())):
        try:
            with torch.device("meta"):
                recipes.construct(recipe, plugins=plugins)
        except _DamageError:
            raise
        except Exception:  # where it cannot be made so, or not at all, making it says what is wrong
            return


@contextlib.contextmanager
def _at_most(count: int, numbers: int) -> Iterator[None]:
    """Within, this thread can give modules only so many parameters and buffers, of so many numbers."""
    here, seen = threading.get_ident(), [0, 0]

    def register(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        if tensor is None or threading.get_ident() != here:
            return
        seen[0] += 1
        seen[1] += tensor.numel()
        if seen[0] > 2 * count + 100 or seen[1] > 2 * numbers + 10_000_000:  # buffers that are not saved
            raise _DamageError(f"its arguments ask for more than {numbers} numbers")

    hooks = [
        registration.register_module_parameter_registration_hook(register),
        registration.register_module_buffer_registration_hook(register),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _sum(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    return checksum([dict(sorted(metadata.items())), dict(sorted(tensors.items()))])


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # a damaged file can break the reader anywhere
        raise WeightsError(f"{path}: damaged, or no .safetensors ({type(error).__name__}); {_REMEDY}") from error
    expected = metadata.pop(SUM, None)
    if expected is not None and expected != _sum(metadata, tensors):
        raise WeightsError(f"{path}: damaged, its content has another checksum than when it was written; {_REMEDY}")
    return metadata, tensors


def _recipe(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    try:
        recipe = json.loads(metadata["recipe"])
        assert isinstance(recipe[recipes.TARGET], str)
    except (KeyError, TypeError, ValueError, AssertionError, RecursionError) as error:
        raise WeightsError(
            f"{path}: not written by ph_l2o, it doesn't say which optimizer it is of; {_REMEDY}"
        ) from error
    return recipe
