"""Objects from configuration, from known packages only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ph_l2o.commands.errors import ConfigError

_ALLOWED = ("ph_l2o", "torch", "pytorch_lightning")


def build(node: Any, *, plugins: Iterable[str] = (), **kwargs: Any) -> Any:
    """Instantiate a configuration node, after checking every `_target_` in it.

    Configuration also comes out of checkpoints, and a `_target_` is code execution: only classes of ph_l2o, torch,
    pytorch_lightning and the packages named in `plugins` are allowed.

    Raises:
        ConfigError: If a target is outside of these, or doesn't fit its arguments.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    _check(plain, (*_ALLOWED, *plugins))
    try:
        return instantiate(plain, _convert_="all", **kwargs)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ValueError):
            raise cause from None
        raise ConfigError(f"{plain['_target_']}: {cause or str(error).splitlines()[0]}") from error


def _check(node: Any, allowed: tuple[str, ...]) -> None:
    if isinstance(node, dict):
        target = node.get("_target_")
        if target is not None and str(target).split(".")[0] not in allowed:
            raise ConfigError(
                f"_target_={target}: must be in one of {', '.join(allowed)}; "
                f"allow another package with 'plugins=[{str(target).split('.')[0]}]'"
            )
        for value in node.values():
            _check(value, allowed)
    elif isinstance(node, list):
        for value in node:
            _check(value, allowed)
