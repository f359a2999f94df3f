"""How a result is written, and what its files say of how it was made."""

from __future__ import annotations

import os
import platform
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import ph_l2o
from ph_l2o.files import git_revision, json_text, write_atomically

if TYPE_CHECKING:
    from pandas import DataFrame


class ResultFiles(ABC):
    """A result that has a JSON file, and a table of one line for each of its rows."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """What `to_json` writes, before numbers that JSON lacks are replaced."""

    @abstractmethod
    def flat_rows(self) -> list[dict[str, Any]]:
        """The rows without nesting."""

    def to_json(self, path: str | Path | None = None) -> str:
        """The result as JSON; with a path, it is also written there.

        JSON has no infinity: it is written as the string "inf" or "-inf" (`float` reads both back). What is
        not defined, such as the accuracy of a quadratic or the mean of ∞ and -∞, is null.
        """
        text = json_text(self.to_dict())
        if path is not None:
            write_atomically(path, text)
        return text

    def to_frame(self) -> DataFrame:
        """The rows as a table, with columns such as `final_mean` and `final_low`."""
        import pandas as pd

        return pd.DataFrame(self.flat_rows())

    def to_csv(self, path: str | Path) -> Path:
        """Write `to_frame` as a CSV file."""
        return write_atomically(path, self.to_frame().to_csv(index=False))


def provenance() -> dict[str, Any]:
    """The revision of the code in the working folder, versions, and the machine."""
    versions = {"ph_l2o": ph_l2o.__version__, "torch": torch.__version__, "python": platform.python_version()}
    return {"git_revision": git_revision(), "versions": versions, "machine": machine_in_words()}


def machine_in_words() -> str:
    """Processor, cores, memory and system of this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    where = f"{platform.system()} {platform.machine()}"
    return f"{processor()}, {os.cpu_count()} cores, {memory:.0f} GiB of memory, {where}"


def processor() -> str:
    """The name of the processor, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
