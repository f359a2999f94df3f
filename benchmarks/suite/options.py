"""How the groups measure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """Settings of a run of the benchmarks.

    Attributes:
        repetitions: Values of each measurement.
        threads: CPU threads of torch.
        data: Folder of the data sets.
        reference: A script with the same meta-training, or None.
        quick: Whether to check that all runs, with sizes too small for figures.
    """

    repetitions: int = 5
    threads: int = 1
    data: Path = Path("data")
    reference: Path | None = None
    quick: bool = False

    def pick(self, full: int, quick: int) -> int:
        """A size."""
        return quick if self.quick else full
