"""`report.html` of a run, with what differs from the defaults."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from pathlib import Path
from typing import Any

from ph_l2o.commands.folders import conf_dir
from ph_l2o.reports import UNKNOWN, write_report

log = logging.getLogger(__name__)


def report(folder: Path) -> Path:
    """Write the page of a run, an evaluation, a suite or a sweep into its folder, and say where it is.

    Raises:
        ReportError: If there are no results, or a file of them is damaged.
        OSError: If the page cannot be written.
    """
    path = write_report(folder, defaults)
    log.info("%s shows this in a browser", os.path.relpath(path))
    return path


@functools.cache
def defaults(command: str) -> dict[str, Any]:
    """What `train` or `evaluate` do without anything typed: values by dotted key.

    Those that only a run has, such as its folder, are `UNKNOWN`.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    is_in_job = GlobalHydra.instance().is_initialized()
    with contextlib.nullcontext() if is_in_job else initialize_config_dir(conf_dir(), version_base="1.3"):
        cfg = compose(command)
    found: dict[str, Any] = {}
    for name in cfg:
        for key in _keys(cfg, str(name)):
            try:
                value = OmegaConf.select(cfg, key)
                found[key] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            except OmegaConfBaseException:
                found[key] = UNKNOWN
    return found


def _keys(cfg: Any, key: str) -> list[str]:
    """The dotted keys of all values below a key."""
    from omegaconf import DictConfig

    node = cfg
    for part in key.split("."):
        node = node._get_node(part)
    if not isinstance(node, DictConfig) or node._is_none() or node._is_interpolation() or not len(node):
        return [key]
    return [found for below in node for found in _keys(cfg, f"{key}.{below}")]
