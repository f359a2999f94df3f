"""Does a damaged file ever crash, hang, pass unnoticed or end in a traceback?

python benchmarks/damaged_files.py --json docs/results/damaged_files.json

Good files are made, and damaged in hundreds of ways (`_damages.py`): cut, flipped bits, other tensors, numbers, shapes,
classes and sizes, missing keys, pipes and devices; with the checksum of before, without one, and with a right one.

- `checkpoints`: each is loaded as an optimizer, and a training goes on from it;
- `weights`: `.safetensors`, loaded as a drop-in optimizer that takes a step;
- `data`: the IDX files of MNIST (with known md5 sums) and of a small set (without).

Each file is read in a process of its own. It must be refused in one line that names it and says what to do, or be read
right: with the good file's content, bit for bit, or what was written where a file without checksum is in order.
`--quick` takes a tenth of the cases.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import logging
import multiprocessing
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import _damages
import _measure
import numpy as np
import torch
from _damages import REFUSED, SAME, Damage

import ph_l2o
from ph_l2o.checkpoints import load_checkpoint
from ph_l2o.checksums import checksum
from ph_l2o.commands.numerics import set_up_torch
from ph_l2o.data import load_images, registry
from ph_l2o.estimators import Truncated
from ph_l2o.meta import MetaLearner, MetaSettings, fit
from ph_l2o.optimizers import PortHamiltonian
from ph_l2o.tasks import Quadratic

SECONDS = 30.0  # after which a file counts as one that hangs
REMEDIES = r"use another|train anew|give |resume |put (a )?good cop|import |resume with"
Look = Callable[[Path], str]  # reads a file, and returns a checksum of what it holds
REFUSALS = (OSError, ValueError, RuntimeError)


def learner(outer_steps: int) -> MetaLearner:
    """A small training."""
    torch.manual_seed(0)
    sizes = {"num_problems": 2, "horizons": (7,), "truncation": 3, "val_problems": 2, "val_horizon": 3}
    settings = MetaSettings(outer_steps=outer_steps, val_every=2, schedule="constant", **sizes)
    return MetaLearner(PortHamiltonian(hidden_size=3), Quadratic(3), Truncated(), settings, compile=False)


def resumed(path: Path) -> str:
    """The optimizer in a checkpoint, and what a training comes to that goes on from it."""
    optimizer, _ = load_checkpoint(path)
    with tempfile.TemporaryDirectory() as folder:
        made = learner(6)
        fit(made, folder, ckpt_path=path, callbacks=[], loggers=[])
    return checksum([optimizer.state_dict(), made.optimizer.state_dict()])


def stepped(path: Path) -> str:
    """The weights of a drop-in optimizer, and a step of it."""
    p = torch.ones(3, requires_grad=True)
    p.grad = torch.ones(3)
    ph_l2o.optim.PortHamiltonian([p], pretrained=path).step()
    return checksum([ph_l2o.optim.load_weights(path).state_dict(), p])


def images(name: str) -> Look:
    """Reads the data set in which the file lies."""

    def look(path: Path) -> str:
        registry._loaded.clear()
        return checksum(list(load_images(name, path.parents[2], download=False)))

    return look


def outcome(look: Look, path: Path) -> tuple[str, str]:
    """What becomes of a file in a process of its own: `read` with a checksum, `refused` with a text, or a failure."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def child() -> None:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            logging.disable(logging.CRITICAL)
            try:
                theirs.send(("read", look(path)))
            except REFUSALS as error:
                theirs.send(("refused", str(error)))
            except BaseException as error:
                theirs.send(("traceback", f"{type(error).__name__}: {error}"))

    process = context.Process(target=child)
    process.start()
    theirs.close()
    try:
        return ours.recv() if ours.poll(SECONDS) else ("hang", "")
    except EOFError:
        process.join()
        return "crash", f"exit code {process.exitcode}"
    finally:
        process.kill()
        process.join()


def judged(damage: Damage, found: tuple[str, str], path: Path, good: str) -> str:
    """`refused` or `read`, or what is wrong."""
    kind, text = found
    if kind == "read":
        wrong = damage.expected == REFUSED or (damage.expected == SAME and text != good)
        return "accepted silently" if wrong else "read"
    if kind == "refused":
        names = path.name in text or "ckpt_path" in text
        return kind if names and "\n" not in text and re.search(REMEDIES, text) else "unclear"
    return kind


def cases(kind: str, folder: Path, data: Path, count: int) -> Iterator[tuple[str, Look, Path, list[Damage]]]:
    """Good files of a kind with their damages: name, what reads one, where it is to lie, damages."""
    rng = np.random.default_rng(0)
    if kind == "checkpoints":
        fit(learner(4), folder / "run", callbacks=[], loggers=[])
        good = (folder / "run" / "checkpoints" / "last.ckpt").read_bytes()
        damages = [*_damages.in_bytes(good, count, rng), *_damages.in_place(), *_damages.in_checkpoints(good)]
        yield kind, resumed, _placed(folder / "damaged.ckpt", good), damages
    if kind == "weights":
        good = ph_l2o.optim.save_weights(learner(4).optimizer, folder / "good.safetensors").read_bytes()
        damages = [*_damages.in_bytes(good, count, rng), *_damages.in_place(), *_damages.in_safetensors(good)]
        yield kind, stepped, _placed(folder / "damaged.safetensors", good), damages
    if kind == "data":
        for name, part in (("mnist", "t10k-labels-idx1-ubyte"), ("mnist", "train-images-idx3-ubyte")):
            shutil.copytree(data / "MNIST", folder / "mnist" / "MNIST", dirs_exist_ok=True)
            path = folder / "mnist" / "MNIST" / "raw" / part
            damages = [*_damages.in_bytes(path.read_bytes(), 1 + count // 4, rng), *_damages.in_place()]
            yield f"{name}, {part}", images(name), path, damages


def _placed(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def run(kind: str, data: Path, count: int, every: int) -> dict[str, Any]:
    """All damages of a kind, or every so many of them; how often each outcome came, and the failures in words."""
    outcomes: collections.Counter[str] = collections.Counter()
    failures: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, look, path, damages in cases(kind, Path(temporary), data, count):
            good, content = outcome(look, path), path.read_bytes()
            assert good[0] == "read", good
            for damage in damages[::every]:
                _removed(path)
                damage.write(path)
                found = outcome(look, path)
                verdict = judged(damage, found, path, good[1])
                outcomes[verdict] += 1
                if verdict not in ("read", "refused"):
                    failures[f"{name}: {damage.name}"] = f"{verdict}: {' '.join(found[1].split())[:200]}"
            _removed(path)
            path.write_bytes(content)
    return {"files": sum(outcomes.values()), "outcomes": dict(sorted(outcomes.items())), "failures": failures}


def _removed(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def main() -> int:
    """Damage files, and say whether any was not handled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--kinds", default="checkpoints,weights,data", help="default: all")
    parser.add_argument("--count", type=int, default=200, help="files of each kind with damaged bytes")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    set_up_torch(1)
    every = 10 if arguments.quick else 1
    parts = {}
    for kind in arguments.kinds.split(","):
        parts[kind] = run(kind, arguments.data.resolve(), arguments.count, every)
        _measure.say(f"{kind}: {parts[kind]['files']} files, {parts[kind]['outcomes']}")
        for name, text in parts[kind]["failures"].items():
            _measure.say(f"  {name}: {text}")
    _measure.write_json(arguments.json, {"quick": arguments.quick, "parts": parts})
    return 1 if any(part["failures"] for part in parts.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
