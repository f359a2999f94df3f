"""Names that are imported when they are first used, so that what is light starts fast."""

from __future__ import annotations

import importlib
from typing import Any


def resolve(place: str) -> Any:
    """The object at `module:name`, or the module at `module`."""
    module, _, name = place.partition(":")
    found = importlib.import_module(module)
    return getattr(found, name) if name else found
