"""Damaged files: what is done to good ones, and what may become of each."""

from __future__ import annotations

import copy
import functools
import io
import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from ph_l2o import checkpoints

REFUSED, SAME, WRITTEN = "refused", "refused, or the good file's content", "refused, or the content that was written"
Content = dict[str, Any]
OURS = "ph_l2o.optimizers.PortHamiltonian"


class Damage(NamedTuple):
    """One damaged file.

    Attributes:
        name: What was done.
        write: Makes the file at a path.
        expected: What may become of it: `REFUSED`, `SAME` or `WRITTEN`.
    """

    name: str
    write: Callable[[Path], object]
    expected: str


def in_bytes(good: bytes, count: int, rng: np.random.Generator) -> Iterator[Damage]:
    """Of a file with checksums: cut, flipped, blanked, longer, other bytes."""

    def flipped(bits: int) -> bytes:
        content = bytearray(good)
        for place in rng.integers(0, 8 * len(good), bits):
            content[place // 8] ^= 1 << (place % 8)
        return bytes(content)

    def blanked(fill: int) -> bytes:
        first, size = int(rng.integers(0, len(good))), int(rng.integers(1, 200))
        return good[:first] + bytes([fill]) * len(good[first : first + size]) + good[first + size :]

    def moved() -> bytes:
        a, b = sorted(int(k) for k in rng.integers(0, len(good), 2))
        return good[:a] + good[b:] + good[a:b]

    kinds: dict[str, Callable[[], bytes]] = {
        "cut": lambda: good[: int(rng.integers(0, len(good)))],
        "cut at the start": lambda: good[int(rng.integers(1, len(good))) :],
        "one bit": lambda: flipped(1),
        "20 bits": lambda: flipped(20),
        "zeros": lambda: blanked(0),
        "ones": lambda: blanked(255),
        "moved": moved,
        "longer": lambda: good + rng.bytes(int(rng.integers(1, 100))),
        "doubled": lambda: good + good,
        "noise": lambda: rng.bytes(int(rng.integers(1, 2 * len(good)))),
    }
    weights = {"cut": 3, "one bit": 8}
    names = [name for name in kinds for _ in range(weights.get(name, 1))]
    for k in range(count):
        name = names[k % len(names)]
        yield Damage(f"{name}, {k}", _writer(kinds[name]()), SAME)


def _writer(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


IN_PLACE: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "empty": lambda path: path.touch(),
    "text": lambda path: path.write_text("<!DOCTYPE html>\n" * 50),
    "folder": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "circle": lambda path: path.symlink_to(path),
    "sparse": lambda path: (path.touch(), os.truncate(path, 2**40)),
}


def in_place() -> Iterator[Damage]:
    """Something else in the place of a file."""
    for name, write in IN_PLACE.items():
        yield Damage(name, write, REFUSED)


# Tensors that are no weights, from good ones. What is finite, of the right type and shape can only be told by a sum.
TENSORS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "nan": (lambda x: x.clone().fill_(torch.nan), REFUSED),
    "one nan": (lambda x: x.clone().index_put_((torch.tensor(0),), torch.tensor(torch.nan)), REFUSED),
    "inf": (lambda x: x / 0, REFUSED),
    "1e38": (lambda x: torch.full_like(x, 1e38), REFUSED),
    "-3e38": (lambda x: torch.full_like(x, -3e38), REFUSED),
    "int": (lambda x: x.int(), REFUSED),
    "half": (lambda x: x.half(), REFUSED),
    "bfloat16": (lambda x: x.bfloat16(), REFUSED),
    "complex": (lambda x: x.to(torch.complex64), REFUSED),
    "bool": (lambda x: x > 0, REFUSED),
    "bytes": (lambda x: x.view(torch.uint8), REFUSED),
    "flat": (lambda x: x.flatten()[None], REFUSED),
    "longer": (lambda x: torch.cat([x, x]), REFUSED),
    "empty": (lambda x: x[:0], REFUSED),
    "number": (lambda x: x.sum(), REFUSED),
    "another": (lambda x: x + 1, WRITTEN),
    "double": (lambda x: x.double(), WRITTEN),
}
OBJECTS: dict[str, Callable[[Tensor], Any]] = {
    "sparse": lambda x: x.to_sparse(),
    "expanded": lambda x: torch.zeros(1).expand(10**15),
    "meta": lambda x: x.to("meta"),
    "list": lambda x: x.tolist(),
    "none": lambda x: None,
    "word": lambda x: "weights",
}

RECIPES: dict[str, Any] = {
    "hidden_size=10**9": {"_target_": OURS, "hidden_size": 10**9},
    "hidden_size=10**5": {"_target_": OURS, "hidden_size": 10**5},
    "hidden_size=10**400": {"_target_": OURS, "hidden_size": 10**400},
    "hidden_size=0": {"_target_": OURS, "hidden_size": 0},
    "hidden_size=-1": {"_target_": OURS, "hidden_size": -1},
    "hidden_size=word": {"_target_": OURS, "hidden_size": "3"},
    "hidden_size=1.5": {"_target_": OURS, "hidden_size": 1.5},
    "hidden_size=none": {"_target_": OURS, "hidden_size": None},
    "hidden_size=list": {"_target_": OURS, "hidden_size": [3]},
    "radius=nan": {"_target_": OURS, "hidden_size": 3, "radius": float("nan")},
    "budget=inf": {"_target_": OURS, "hidden_size": 3, "budget": float("inf")},
    "decay=inf": {"_target_": OURS, "hidden_size": 3, "decay": [float("inf"), 0]},
    "layers=10**9": {"_target_": "ph_l2o.optimizers.LSTM", "num_layers": 10**9},
    "layers=10**6": {"_target_": "ph_l2o.optimizers.RNNprop", "num_layers": 10**6},
    "steps=10**12": {
        "_target_": "ph_l2o.optimizers.Scheduled", "horizon": 10**12, "optimizer": {"_target_": "ph_l2o.optimizers.SGD"}
    },
    "another class": {"_target_": "ph_l2o.optimizers.HNN"},
    "unknown class": {"_target_": "ph_l2o.optimizers.Adamant"},
    "no class": {"hidden_size": 3},
    "unknown argument": {"_target_": OURS, "depth": 3},
    "none": None,
    "word": OURS,
}  # fmt: skip


def in_safetensors(good: bytes) -> Iterator[Damage]:
    """Other tensors and recipes, with the sum of before, without one, and with the right one."""
    tensors, recipe = load(good), json.loads(_metadata(good)["recipe"])
    first = next(iter(tensors))

    def written(tensors: dict[str, Tensor], recipe: Any, sum: str) -> Callable[[Path], object]:
        metadata = {"recipe": recipe if isinstance(recipe, str) else json.dumps(recipe), "trained_on": "null"}
        if sum != "no":
            metadata["sha256"] = _metadata(good)["sha256"] if sum == "old" else checkpoints._sum(metadata, tensors)
        return _writer(save({k: x.contiguous() for k, x in tensors.items()}, metadata))

    for sum in ("old", "no", "right"):
        for name, (change, expected) in TENSORS.items():
            if name != "complex":
                of_sum = REFUSED if sum == "old" else expected
                yield Damage(
                    f"{name}, {sum} sum", written({**tensors, first: change(tensors[first])}, recipe, sum), of_sum
                )
        less = {k: x for k, x in tensors.items() if k != first}
        yield Damage(f"less, {sum} sum", written(less, recipe, sum), REFUSED)
        yield Damage(f"more, {sum} sum", written({**tensors, "more": torch.ones(2)}, recipe, sum), REFUSED)
    for name, recipe in RECIPES.items():
        yield Damage(name, written(tensors, recipe, "right"), REFUSED)
    yield Damage("deep", written(tensors, "[" * 100_000, "right"), REFUSED)
    yield Damage("no recipe", _writer(save(tensors)), REFUSED)
    for name, size in (("huge header", 2**62), ("long header", 2**31), ("no header", 0)):
        yield Damage(name, _writer(struct.pack("<Q", size) + good[8:]), REFUSED)


def _metadata(good: bytes) -> dict[str, str]:
    (size,) = struct.unpack("<Q", good[:8])
    return json.loads(good[8 : 8 + size])["__metadata__"]


def in_checkpoints(good: bytes) -> Iterator[Damage]:
    """Other content, with the sum of before, without one, and with the right one."""
    for name, change, expected in _changes(_loaded(good)):
        for sum in ("old", "no", "right"):
            write = functools.partial(_write_changed, good, change, sum)
            yield Damage(f"{name}, {sum} sum", write, REFUSED if sum == "old" else expected)
    yield Damage("as older versions wrote it", functools.partial(_write_changed, good, lambda c: None, "no"), SAME)


def _write_changed(good: bytes, change: Callable[[Content], Any], sum: str, path: Path) -> None:
    content = _loaded(good)
    changed = change(content)
    content = content if changed is None else changed
    own = content.get(checkpoints.KEY) if isinstance(content, dict) else None
    if isinstance(own, dict) and sum != "old":
        own.pop("sha256", None)
        if sum == "right":
            _with_sum(content)
    torch.save(content, path)


def _loaded(good: bytes) -> Content:
    return torch.load(io.BytesIO(good), weights_only=True)


def _with_sum(content: Content) -> None:
    try:
        checkpoints.add_checksum(content)
    except (RecursionError, ValueError, NotImplementedError, RuntimeError, TypeError):
        content[checkpoints.KEY]["sha256"] = "0" * 64


Change = tuple[str, Callable[[Content], Any], str]


def _set(*keys: Any, to: Any) -> Callable[[Content], Any]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to(content[keys[-1]]) if callable(to) else to

    return change


def _drop(*keys: Any) -> Callable[[Content], Any]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return change


def _changes(content: Content) -> Iterator[Change]:
    weights, first = content["state_dict"], next(iter(content["state_dict"]))
    for name, (change, expected) in TENSORS.items():
        yield f"weight {name}", _set("state_dict", first, to=change), expected
    for name, change in OBJECTS.items():
        yield f"weight {name}", _set("state_dict", first, to=change), REFUSED
    alike = [n for n in weights if weights[n].shape == weights[first].shape and n != first]
    if alike:
        yield "weights swapped", lambda c: c["state_dict"].update({first: weights[alike[0]]}), WRITTEN
    yield "weight missing", _drop("state_dict", first), REFUSED
    yield "weight more", _more, REFUSED
    for key in (
        "state_dict",
        "ph_l2o",
        "loops",
        "optimizer_states",
        "lr_schedulers",
        "callbacks",
        "epoch",
        "global_step",
    ):
        yield f"{key} missing", _drop(key), REFUSED
        for what, to in (("none", None), ("list", [1]), ("word", "x")):
            yield f"{key} {what}", _set(key, to=to), REFUSED
    for what, to in (("-5", -5), ("huge", 10**30), ("word", "3"), ("float", 2.5), ("none", None), ("true", True)):
        yield f"global_step {what}", _set("global_step", to=to), REFUSED
        for key in ("outer_step", "windows", "next_episode", "skipped_steps"):
            if not (what == "huge" and key != "outer_step"):
                yield f"{key} {what}", _set("ph_l2o", key, to=to), REFUSED
    yield from _changes_of_outer()
    yield from _changes_of_own()


def _more(content: Content) -> None:
    content["state_dict"]["optimizer.more"] = torch.ones(2)


def _changes_of_outer() -> Iterator[Change]:
    state = ("optimizer_states", 0, "state", 0)
    for moment in ("exp_avg", "exp_avg_sq"):
        for name in ("nan", "inf", "int", "half", "flat", "longer", "empty", "number"):
            yield f"{moment} {name}", _set(*state, moment, to=TENSORS[name][0]), REFUSED
        for name in ("sparse", "expanded", "none", "list", "meta"):
            yield f"{moment} {name}", _set(*state, moment, to=OBJECTS[name]), REFUSED
        yield f"{moment} missing", _drop(*state, moment), REFUSED
    yield "exp_avg_sq negative", _set(*state, "exp_avg_sq", to=lambda x: -x - 1), REFUSED
    yield "step negative", _set(*state, "step", to=lambda x: -x - 1), REFUSED
    yield "step word", _set(*state, "step", to="3"), REFUSED
    yield "state of another", _set("optimizer_states", 0, "state", to=lambda s: {99: s[0]}), REFUSED
    yield "two outer optimizers", _set("optimizer_states", to=lambda s: [*s, *s]), REFUSED
    yield "no outer optimizer", _set("optimizer_states", to=lambda s: []), REFUSED
    group = ("optimizer_states", 0, "param_groups")
    yield "no groups", _set(*group, to=lambda g: []), REFUSED
    yield "parameters of another", _set(*group, 0, "params", to=[0, 0, 7]), REFUSED
    for key, to in (("lr", float("nan")), ("lr", "x"), ("betas", (2.0, 2.0)), ("eps", float("inf")), ("fused", "yes")):
        yield f"{key}={to}", _set(*group, 0, key, to=to), REFUSED
    for key in ("lr", "betas", "params"):
        yield f"{key} missing", _drop(*group, 0, key), REFUSED
    yield "no schedule", _set("lr_schedulers", to=lambda s: []), REFUSED
    yield "schedule nan", _set("lr_schedulers", 0, "base_lrs", to=[float("nan")]), REFUSED
    yield "schedule word", _set("lr_schedulers", 0, "last_epoch", to="x"), REFUSED
    yield "fit_loop missing", _drop("loops", "fit_loop"), REFUSED
    for key in ("state_dict", "epoch_loop.batch_progress", "epoch_loop.automatic_optimization.optim_progress"):
        yield f"fit_loop.{key} missing", _drop("loops", "fit_loop", key), REFUSED
        yield f"fit_loop.{key} none", _set("loops", "fit_loop", key, to=None), REFUSED
    progress = ("loops", "fit_loop", "epoch_loop.automatic_optimization.optim_progress", "optimizer", "step", "total")
    yield "progress -1", _set(*progress, "completed", to=-1), REFUSED
    yield "progress more", _set(*progress, "completed", to=lambda n: n + 1), REFUSED


def _changes_of_own() -> Iterator[Change]:
    own, episode = ("ph_l2o",), ("ph_l2o", "episodes", 0)
    for name, recipe in RECIPES.items():
        yield f"recipe {name}", _set(*own, "config", "optimizer", to=recipe), REFUSED
    for what, to in (("none", None), ("list", []), ("word", "x"), ("tensors", {"a": torch.ones(2)})):
        yield f"config {what}", _set(*own, "config", to=to), REFUSED
    yield "config interpolated", _interpolated, REFUSED
    for key in ("config", "outer_step", "episodes", "windows", "next_episode", "skipped_steps", "windows_left_out"):
        yield f"{key} missing", _drop(*own, key), REFUSED
    for what, to in (
        ("none", None),
        ("number", 3),
        ("too many", lambda e: [*e, None]),
        ("word", ["x"]),
        ("empty", [{}]),
    ):
        yield f"episodes {what}", _set(*own, "episodes", to=to), REFUSED
    for key, to in (("number", -1), ("horizon", -3), ("age", -1), ("age", 10**9), ("number", "x")):
        yield f"episode's {key}={to}", _set(*episode, key, to=to), REFUSED
    for name in ("flat", "longer", "empty", "number", "int", "bool", "complex"):
        yield f"episode's parameters {name}", _set(*episode, "params", to=TENSORS[name][0]), REFUSED
    for name in ("sparse", "expanded", "none", "list", "meta"):
        yield f"episode's parameters {name}", _set(*episode, "params", to=OBJECTS[name]), REFUSED
    yield "episode's state shorter", _set(*episode, "state", to=lambda s: s[:-1]), REFUSED
    yield "episode's state flat", _set(*episode, "state", to=lambda s: [x.flatten()[None] for x in s]), REFUSED

    def laughs(content: Content) -> None:
        value: list[Any] = ["x"]
        for _ in range(60):
            value = [value, value]
        content["more"] = value

    def circle(content: Content) -> None:
        content["more"] = content["callbacks"]
        content["callbacks"]["more"] = content["callbacks"]

    def deep(content: Content) -> None:
        value: list[Any] = []
        for _ in range(200):
            value = [value]
        content["more"] = value

    yield "laughs", laughs, REFUSED
    yield "circle", circle, REFUSED
    yield "deep", deep, REFUSED
    yield "a list", lambda content: [content], REFUSED
    yield "a tensor", lambda content: torch.ones(3), REFUSED
    yield "foreign", lambda content: {"state_dict": copy.copy(content["state_dict"])}, REFUSED


def _interpolated(content: Content) -> None:
    content["ph_l2o"]["config"]["task"] = "${oc.env:HOME}"
