r"""Write the weights of a checkpoint as `.safetensors`.

python -m ph_l2o.optim.export runs/…/checkpoints/best.ckpt mine.safetensors

The weights in this package are written from last.ckpt of the runs of experiment=pretrain and pretrain_kronecker:

python -m ph_l2o.optim.export … default.safetensors --set clock=50 --set decay=[200,0.5] --set warmup_steps=10
python -m ph_l2o.optim.export … kronecker.safetensors --set clock=50 --set decay=[200,0.5] --set warmup_steps=10 \
    --set max_preconditioner_dim=1024

python -m ph_l2o.optim.export untrained ph_l2o/weights/default.safetensors    # as meta-training starts, seed 0
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ph_l2o.checkpoints import (
    FOLDER,
    SHIPPED,
    describe,
    load_checkpoint,
    load_weights,
    problem_of_weights,
    save_weights,
)  # fmt: skip
from ph_l2o.errors import CheckpointError, WeightsError
from ph_l2o.files import without_folders
from ph_l2o.optimizers import PortHamiltonian
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.recipes import targets

_SETTINGS = ("outer_steps", "horizons", "num_problems", "learning_rate", "rescale", "hide_loss")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file; 1 if that is not possible."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a checkpoint of train.py, a .safetensors, or `untrained`")
    parser.add_argument("target", help="the file to write, *.safetensors")
    what = "an argument of the optimizer, and its new value"
    parser.add_argument("--set", help=what, metavar="NAME=VALUE", action="append", default=[])
    what = "a module of yours that is imported, for an optimizer of its"
    parser.add_argument("--plugin", help=what, metavar="MODULE", action="append", default=[])
    arguments = parser.parse_args(argv)
    try:
        optimizer, trained_on = _source(arguments.source, arguments.plugin)
        optimizer = _changed(optimizer, arguments.set)
        path = save_weights(optimizer, arguments.target, trained_on=trained_on)
    except (OSError, ValueError, CheckpointError, WeightsError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{path}: {type(optimizer).__name__}, {path.stat().st_size / 1000:.1f} kB")
    return 0


def _source(source: str, plugins: Sequence[str]) -> tuple[LearnedOptimizer, Any]:
    if source == "untrained":
        torch.manual_seed(0)
        return PortHamiltonian(), "nothing"
    if source in SHIPPED.values() or source.endswith(".safetensors"):
        path = FOLDER / f"{source}.safetensors" if source in SHIPPED.values() else Path(source)
        return load_weights(source, plugins=plugins), describe(path)["trained_on"]
    optimizer, config = load_checkpoint(source, plugins=plugins)
    meta = config.get("meta")
    trained_on = {
        "tasks": sorted(set(targets(config.get("task")))),
        "estimator": next(targets(config.get("estimator")), None),
        "seed": config.get("seed"),
        **{name: meta[name] for name in _SETTINGS if isinstance(meta, dict) and name in meta},
    }
    return optimizer, without_folders(trained_on)


def _changed(optimizer: LearnedOptimizer, changes: Sequence[str]) -> LearnedOptimizer:
    if not changes:
        return optimizer
    allowed = list(inspect.signature(type(optimizer)).parameters)
    arguments = {name: value for name, value in optimizer.recipe.items() if name != "_target_"}
    for change in changes:
        name, equals, value = change.partition("=")
        if name not in allowed or not equals:
            raise ValueError(f"--set {change}: must be NAME=VALUE with one of {', '.join(allowed)}")
        try:
            arguments[name] = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"--set {change}: {error}") from error
    try:
        changed = type(optimizer)(**arguments)
    except TypeError as error:
        raise ValueError(f"--set {' '.join(changes)}: {error}") from error
    if problem := problem_of_weights(optimizer.state_dict(), changed.state_dict()):
        raise ValueError(f"--set {' '.join(changes)}: with it the {problem}; leave out what changes their sizes")
    changed.load_state_dict(optimizer.state_dict())
    return changed


if __name__ == "__main__":
    raise SystemExit(main())
