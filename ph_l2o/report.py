"""`python -m ph_l2o.report FOLDER …`: a page of results that are there already."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ph_l2o.commands.configuration import register
from ph_l2o.commands.reporting import report
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
            print(report(folder))
        except ReportError as error:
            sys.exit(f"error: {error}")
        except OSError as error:
            sys.exit(f"error: {error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()
