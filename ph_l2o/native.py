"""Where compiled code is kept between runs: what lies there is executed, so that no one else may write to it."""

from __future__ import annotations

import functools
import logging
import os
import platform
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)


def folder() -> Path:
    """`$PH_L2O_CACHE/ph_l2o`, by default in the user's cache; a temporary one where that is not the user's alone."""
    base = os.environ.get("PH_L2O_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    found = Path(base) / "ph_l2o"
    try:
        found.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = found.stat()
        if not os.access(found, os.W_OK):
            return _temporary(f"{found} cannot be written to")
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            return _temporary(f"others can write to {found}")
        return found
    except OSError as error:
        return _temporary(str(error))


@functools.cache
def _temporary(reason: str) -> Path:
    log.warning("compiled code is not kept between runs: %s; set PH_L2O_CACHE to a folder of your own", reason)
    return Path(tempfile.mkdtemp(prefix="ph_l2o_"))


@functools.cache
def processor() -> str:
    """What code that is compiled here may use; it may not run on another processor that shares the folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return platform.machine() + next((line for line in lines if line.startswith(("flags", "Features"))), "")
