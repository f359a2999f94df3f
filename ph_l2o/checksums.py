"""A checksum of what a file holds: numbers, words and tensors, however they are nested and however they are written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_MOST_VALUES = 1_000_000
_PLAIN = (bool, int, float, str, bytes, torch.dtype, torch.device, type(None))


class _Digest:
    def __init__(self) -> None:
        self._sha, self._values = hashlib.sha256(), 0

    def add(self, value: Any) -> None:
        self._values += 1
        if self._values > _MOST_VALUES:
            raise ValueError(f"more than {_MOST_VALUES} values")
        if isinstance(value, Tensor):
            self._word(f"{value.dtype} {tuple(value.shape)}")
            self._sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        elif isinstance(value, Mapping):
            self._word(f"mapping {len(value)}")
            for item in value.items():
                self._all(item)
        elif isinstance(value, list | tuple):
            self._word(f"sequence {len(value)}")
            self._all(value)
        else:
            self._word(f"{type(value).__name__} {value!r}" if isinstance(value, _PLAIN) else type(value).__name__)

    def _all(self, values: Any) -> None:
        for value in values:
            self.add(value)

    def _word(self, text: str) -> None:
        self._sha.update(f"{text}\n".encode(errors="backslashreplace"))

    def hexdigest(self) -> str:
        return self._sha.hexdigest()


def checksum(content: Any) -> str:
    """SHA-256 of plain values, and of tensors with their types and shapes; of other things only of their class.

    Raises:
        ValueError: If there are more than a million values, as in a file that is made to take for ever.
        RecursionError: If they are nested too deeply, or contain themselves.
    """
    digest = _Digest()
    digest.add(content)
    return digest.hexdigest()
