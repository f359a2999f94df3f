"""Reading the file in which W&B keeps a run, `wandb/*/run-<id>.wandb`.

It is a log as LevelDB's: blocks of 32 KiB, and in them records that can be split, each a message of W&B's protocol.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

_IDENTITY = b":W&B\xe1\xbe\x00"
_BLOCK, _HEADER = 32768, struct.Struct("<IHB")  # checksum, length, kind
_FULL, _FIRST, _LAST = 1, 2, 4  # kinds
_LAST_BLOCKS = 8  # in which a run's end is


class Recorded(NamedTuple):
    """How far the files of a run go.

    Attributes:
        row: Number of the last row of its history; -1 if there is none.
        outer_steps: The last outer step of each metric.
    """

    row: int
    outer_steps: dict[str, int]


def records(path: Path) -> Iterator[Any]:
    """The records of a file, as W&B's `Record` messages, up to where a process was killed while it wrote."""
    content = path.read_bytes()
    if content.startswith(_IDENTITY):
        yield from map(_record, _messages(content, len(_IDENTITY)))


def has_ended(path: Path) -> bool:
    """Whether the end of the run is in a file: the last that is written, if all of it could be."""
    start = max(0, path.stat().st_size // _BLOCK - _LAST_BLOCKS) * _BLOCK
    with path.open("rb") as file:
        file.seek(start)
        last = _messages(file.read(), 0 if start else len(_IDENTITY))
        return any(_record(data).WhichOneof("record_type") == "exit" for data in last)


def _record(data: bytes) -> Any:
    from wandb.proto import wandb_internal_pb2

    record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
    record.ParseFromString(data)
    return record


def _messages(content: bytes, at: int) -> Iterator[bytes]:
    """The messages of blocks from a place on; the first can be the rest of one, which is left out."""
    parts: list[bytes] | None = None
    while at + _HEADER.size <= len(content):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER.size:
            at += left
            continue
        _, length, kind = _HEADER.unpack_from(content, at)
        at += _HEADER.size
        if kind == 0 or at + length > len(content):
            return
        if kind in (_FULL, _FIRST):
            parts = []
        if parts is not None:
            parts.append(content[at : at + length])
            if kind in (_FULL, _LAST):
                yield b"".join(parts)
                parts = None
        at += length


def history(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a run's history."""
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            yield values(record.history.item)


def values(items: Any) -> dict[str, Any]:
    """What key-value items of a record say; nested keys are joined by dots."""
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def recorded(folder: Path, run_id: str, axis: str) -> Recorded:
    """How far the files of a run go, of all its starts.

    Args:
        folder: W&B's, `wandb/` in the run's folder.
        run_id: Of the run.
        axis: The metric that counts outer steps.
    """
    row, last = -1, dict[str, int]()
    for path in sorted(folder.glob(f"*/run-{run_id}.wandb")):
        for found in history(path):
            row = max(row, int(found.get("_step", -1)))
            if axis in found:
                for key in found:
                    last[key] = max(last.get(key, 0), int(found[axis]))
    return Recorded(row, last)
