"""What a process of a run says when another one is lost."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from ph_l2o.commands.folders import LAST
from ph_l2o.errors import NonFiniteError, ProcessError
from ph_l2o.ranks import STARTED_BY

_PATIENCE = 1.0  # seconds; the sockets of a process that is killed close before its children see that it is gone


def how_to_resume(folder: Path) -> str:
    """What to do after a run ended because of one of its processes."""
    if (folder / LAST).is_file():
        return f"resume with ckpt_path=last or ckpt_path={os.path.relpath(folder / LAST)}"
    if (folder / "config.yaml").is_file():
        return "no checkpoint was written yet, so start the run anew"
    return "resume with ckpt_path=last"  # the folder of process 0 is elsewhere


def is_told_by_another(error: BaseException) -> bool:
    """Whether an error that all processes meet is told by the process that started this one, if that still lives."""
    if STARTED_BY not in os.environ or not isinstance(error, NonFiniteError | ProcessError):
        return False
    until = time.monotonic() + _PATIENCE
    while str(os.getppid()) == os.environ[STARTED_BY]:
        if time.monotonic() > until:
            return True
        time.sleep(0.05)
    return False


def print_error(text: str) -> None:
    """One line on stderr, from a thread whose process ends."""
    sys.stderr.write(f"error: {text}\n")
    sys.stderr.flush()
