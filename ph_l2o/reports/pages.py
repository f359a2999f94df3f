"""From a folder of results to its page."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ph_l2o.errors import ReportError
from ph_l2o.files import write_atomically
from ph_l2o.reports import comparison, suite, sweep
from ph_l2o.reports.files import read_json, read_results
from ph_l2o.reports.page import html
from ph_l2o.reports.parts import Page
from ph_l2o.reports.settings import command_name, config_of, settings_sections
from ph_l2o.reports.training import diagnostics_sections, training_sections, training_verdict
from ph_l2o.reports.values import text

REPORT = "report.html"
Defaults = Callable[[str], Mapping[str, Any]]  # from a command's name to values by dotted key


def write_report(folder: Path, defaults: Defaults | None = None) -> Path:
    """Write `report.html` of a training, an evaluation, a suite or a sweep into its folder.

    Args:
        folder: With `comparison.json`, `suite.json`, `metrics.csv` or `summary.csv`.
        defaults: What the configuration is compared with; None: with nothing.

    Raises:
        ReportError: If there are no results, or a file of them is damaged.
        OSError: If the page cannot be written.
    """
    return write_atomically(folder / REPORT, html(page_of(folder, defaults)))


def page_of(folder: Path, defaults: Defaults | None = None) -> Page:
    """What `write_report` writes."""
    if not folder.is_dir():
        raise ReportError(f"{folder}: no such folder; give that of a run, an evaluation or a sweep")
    if jobs := sweep.jobs_of(folder):
        title = f"Sweep of {sweep.count(jobs)}"
        return Page(title, f"{folder.parent.name} {folder.name}", sweep.verdict(jobs), sweep.sections(folder, jobs))
    compared = read_results(folder / "comparison.json", "optimizer")
    tested = read_results(folder / "suite.json", "optimizer", "task")
    config, trained = config_of(folder), training_sections(folder)
    if compared is None and tested is None and not trained and not config:
        raise ReportError(
            f"{folder}: no results in here; give a folder with comparison.json, suite.json, metrics.csv or summary.csv"
        )
    verdict, sections = [], []
    if compared is not None:
        verdict += comparison.verdict(compared)
        sections += comparison.sections(folder, compared)
    if tested is not None:
        verdict += suite.verdict(tested)
        sections += suite.sections(folder, tested)
    verdict = verdict or training_verdict(folder) or ["This folder holds no results yet."]
    sections += trained + diagnostics_sections(folder)
    known = defaults(command_name(config)) if defaults is not None and config else None
    sections += settings_sections(folder, config, compared or tested or {}, known)
    return Page(_title(config, compared, tested), _subtitle(folder, config), verdict, sections)


def _title(config: Mapping[str, Any], compared: Mapping[str, Any] | None, tested: Mapping[str, Any] | None) -> str:
    if tested is not None:
        return f"{', '.join(suite.judged(tested))} on the suite {text(tested, 'suite')}"
    if compared is not None:
        learned = comparison.names_of(compared, "learned") or [row["optimizer"] for row in compared["rows"]]
        return f"{', '.join(learned)} on {text(compared, 'task')}"
    return text(config, "run_name") or "Training"


def _subtitle(folder: Path, config: Mapping[str, Any]) -> str:
    """What it is, of which day, and how it ended."""
    parts = [{"train": "training", "evaluate": "evaluation"}[command_name(config)]] if config else []
    parts += [p for p in folder.absolute().parts[-3:] if re.fullmatch(r"\d{4}-\d\d-\d\d", p)]
    status = read_json(folder / "status.json") or {}
    if state := text(status, "status"):
        seconds = text(status, "seconds")
        state = "running, or killed" if state == "running" else state  # of which a page knows no more
        parts.append(state + (f" after {seconds} s" if seconds else ""))
    if reason := text(status, "error"):
        parts.append(reason)
    return " · ".join(parts)
