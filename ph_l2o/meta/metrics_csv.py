"""`metrics.csv` of a run, which a resumed run continues."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

_STEP = "outer_step"


class MetricsCSV(Logger):
    """One row for each outer step at which something was logged, one column for each metric.

    Lightning's own CSVLogger deletes the file of a run that is resumed.

    Args:
        folder: Folder of the run. Of a file that is there, rows from before the first step to come are kept.
        flush_every: Rows that are written at once.
    """

    def __init__(self, folder: str | Path, *, flush_every: int = 100):
        super().__init__()
        self.path, self.flush_every, self._is_new = Path(folder) / "metrics.csv", flush_every, True
        self._columns: list[str] = []
        self._pending: dict[int, dict[str, Any]] = {}

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "csv"

    @property
    def version(self) -> str:
        """There is one file for each run."""
        return ""

    @property
    def save_dir(self) -> str:
        """Folder of the run."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The configuration has a file of its own."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add metrics to the row of an outer step, counted from 1."""
        number = (step or 0) + 1
        if self._is_new:
            self._take_up(number)
        row = self._pending.setdefault(number, {_STEP: number})
        row.update({k: v for k, v in metrics.items() if k != "epoch"})
        if len(self._pending) > self.flush_every:
            self._write([self._pending.pop(k) for k in sorted(self._pending) if k != number])

    def _take_up(self, number: int) -> None:
        self._is_new = False
        if self.path.is_file():
            rows = [row for row in self._read() if int(row[_STEP]) < number]
            self._rewrite(rows)

    def _read(self) -> list[dict[str, Any]]:
        with self.path.open(newline="") as file:
            reader = csv.DictReader(file)
            self._columns = list(reader.fieldnames or [])
            return list(reader)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        new = [k for k in dict.fromkeys(k for row in rows for k in row) if k not in self._columns]
        if new:
            # A new column changes the header, so the whole file is written again.
            before = self._read() if self._columns else []
            self._columns += new
            self._rewrite(before + rows)
            return
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerows(rows)

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".csv.tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, self.path)

    @rank_zero_only
    def save(self) -> None:
        """Rows are written in blocks, and all of them by `finalize`."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the rest."""
        if self._pending:
            self._write([self._pending.pop(k) for k in sorted(self._pending)])
