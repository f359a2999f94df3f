"""Overrides as they were typed, of which `${…}` is text: OmegaConf would resolve it in the list that Hydra keeps."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf


def overrides_of(hydra: Any, kind: str = "task") -> list[str]:
    """What was typed.

    Args:
        hydra: Hydra's part of a configuration.
        kind: `task`, or `hydra` for Hydra's own keys.
    """
    found: Any = OmegaConf.to_container(hydra.overrides[kind], resolve=False)
    return list(found)
