"""`metrics.csv` of a run, which a resumed run continues."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from ph_l2o.files import bring_to_disk, naming, write_atomically

_STEP = "outer_step"


class MetricsCSV(Logger):
    """One row for each outer step at which something was logged, one column for each metric.

    Lightning's own CSVLogger deletes the file of a run that is resumed.

    Args:
        folder: Folder of the run. Of a file that is there, rows up to the step of the checkpoint are kept.
        flush_every: Rows that are written at once.
    """

    def __init__(self, folder: str | Path, *, flush_every: int = 100):
        super().__init__()
        self.path, self.flush_every, self._is_new = Path(folder) / "metrics.csv", flush_every, True
        self._columns: list[str] = []
        self._last = 0  # step of the last row in the file
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
            self.take_up(number - 1)
        row = self._pending.setdefault(number, {_STEP: number})
        row.update({k: v for k, v in metrics.items() if k != "epoch"})
        if len(self._pending) > self.flush_every:
            self._write([self._pending.pop(k) for k in sorted(self._pending) if k != number])

    @rank_zero_only
    def take_up(self, done: int) -> None:
        """Keep the rows up to the outer step `done` of a checkpoint; what a killed run wrote last can be half a row."""
        self._is_new = False
        if self.path.is_file():
            rows, last = list[dict[str, Any]](), 0
            for row in self._read():
                if not ((row[_STEP] or "").isdecimal() and last < int(row[_STEP]) <= done):
                    break
                last = int(row[_STEP])
                rows.append(row)
            self._rewrite(rows)
            self._last = last

    def _read(self) -> list[dict[str, Any]]:
        with self.path.open(newline="") as file:
            reader = csv.DictReader(file)
            self._columns = list(reader.fieldnames or [])
            return list(reader)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        new = [k for k in dict.fromkeys(k for row in rows for k in row) if k not in self._columns]
        if new or rows[0][_STEP] <= self._last:
            # A new column changes the header, and something new an old row, so the whole file is written again.
            merged = {int(row[_STEP]): row for row in (self._read() if self._columns else [])}
            for row in rows:
                merged.setdefault(row[_STEP], {}).update(row)
            self._columns += new
            self._rewrite(list(merged.values()))
        else:
            self._append(rows)
        self._last = max(self._last, rows[-1][_STEP])

    def _append(self, rows: list[dict[str, Any]]) -> None:
        with naming(self.path), self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerows(rows)
            bring_to_disk(file)

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path, text.getvalue())

    @rank_zero_only
    def save(self) -> None:
        """Rows are written in blocks, and all of them by `flush`."""

    @rank_zero_only
    def flush(self) -> None:
        """Bring all rows to the disk, before a checkpoint that follows them."""
        if self._pending:
            self._write([self._pending.pop(k) for k in sorted(self._pending)])

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the rest."""
        self.flush()
