"""`python -m ph_l2o.report FOLDER …`: a page of results that are there already."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ph_l2o.commands.configuration import register
from ph_l2o.commands.reporting import report
from ph_l2o.commands.sweeps.sweep_folder import is_sweep, jobs_in
from ph_l2o.commands.sweeps.sweep_rows import SweepRows
from ph_l2o.commands.sweeps.sweep_summary import write_summary
from ph_l2o.errors import ReportError


def main() -> None:
    """Write `report.html` into each folder that is named."""
    parser = argparse.ArgumentParser(
        prog="python -m ph_l2o.report",
        description="Write report.html, one page that needs no network, into folders of results: of a run of train.py, "
        "an evaluation, a suite, or a sweep.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="such as runs/2026-01-31/12-00-00-…")
    register()
    for folder in parser.parse_args().folders:
        try:
            _bring_up_to_date(folder)
            print(report(folder))
        except ReportError as error:
            sys.exit(f"error: {error}")
        except OSError as error:
            sys.exit(f"error: {error.filename}: {error.strerror}")


def _bring_up_to_date(folder: Path) -> None:
    """A sweep that was killed had no time to write of the job that it was at, and one that runs has not written yet."""
    if is_sweep(folder) and jobs_in(folder):
        write_summary(folder, SweepRows())


if __name__ == "__main__":
    main()
