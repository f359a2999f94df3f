"""With what a result was made, for the files that hold it."""

from __future__ import annotations

import platform
from typing import Any

import torch

import ph_l2o
from ph_l2o.files import git_revision


def provenance() -> dict[str, Any]:
    """The revision of the code in the working folder, and versions."""
    versions = {"ph_l2o": ph_l2o.__version__, "torch": torch.__version__, "python": platform.python_version()}
    return {"git_revision": git_revision(), "versions": versions}
