"""What the jobs of a sweep say, side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ph_l2o.palette import looks
from ph_l2o.reports.comparison import ratio_to_best
from ph_l2o.reports.curves import chart_of
from ph_l2o.reports.files import Rows, read_csv, read_results
from ph_l2o.reports.parts import Cell, Chart, Charts, Column, Line, Section, Sentences, Table, log_places
from ph_l2o.reports.settings import config_of, typed
from ph_l2o.reports.values import number, show, text, with_interval

_PLACES = ("job", "status")
_WORDS = ("optimizer", "best_baseline", "error")  # columns of summary.csv that hold no numbers
_MAX_LINES = 10  # of a chart


class Job(NamedTuple):
    """A job's row of `summary.csv`, what was typed for it, and its comparison's task and first row; {} without one."""

    row: Mapping[str, str]
    typed: Mapping[str, str]
    task: str
    first: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.row["job"]


def jobs_of(folder: Path) -> list[Job]:
    """The jobs of `summary.csv`, in its order; empty if there is no such file.

    Raises:
        ReportError: If a file is damaged.
    """
    return [_job(folder, row) for row in read_csv(folder / "summary.csv", *_PLACES)]


def _job(folder: Path, row: Mapping[str, str]) -> Job:
    place = folder / Path(row["job"]).name  # nothing outside of the sweep's folder
    found = read_results(place / "comparison.json", "optimizer") or {}
    keys = (o.partition("=") for o in typed(place, config_of(place)))
    return Job(row, {k: v for k, _, v in keys}, text(found, "task"), found["rows"][0] if found else {})


def count(jobs: Sequence[Job]) -> str:
    """In words."""
    return "1 job" if len(jobs) == 1 else f"{len(jobs)} jobs"


def verdict(jobs: Sequence[Job]) -> list[str]:
    """How many jobs there are, and the lowest of each task."""
    counts = {s: sum(j.row["status"] == s for j in jobs) for s in dict.fromkeys(j.row["status"] for j in jobs)}
    sentences = [f"{count(jobs)}: {', '.join(f'{n} {status}' for status, n in counts.items())}."]
    for task in dict.fromkeys(j.task for j in jobs if j.first):
        done = [j for j in jobs if j.task == task and math.isfinite(number(j.first, "final", "mean"))]
        if done:
            low = min(done, key=lambda j: number(j.first, "final", "mean"))
            point, ends = ratio_to_best(low.first)
            more = (
                f"; the best tuned baseline's is {with_interval(point, ends)} times as high"
                if point == point and (point, *ends) != (1.0, 1.0, 1.0)  # which is the best baseline itself
                else ""
            )
            value = show(number(low.first, "final", "mean"))
            sentences.append(f"{task}: {text(low.first, 'optimizer')} of job {low.name} is lowest, {value}{more}.")
    return sentences


def sections(folder: Path, jobs: Sequence[Job]) -> list[Section]:
    """A table of all jobs, their curves on each task, and where they lose or failed."""
    made = [Section("Jobs", [_table(folder, jobs)])]
    if charts := [c for task in dict.fromkeys(j.task for j in jobs if j.first) if (c := _chart(folder, jobs, task))]:
        note = f"The first optimizer of each job; of each task at most {_MAX_LINES} jobs, those with the lowest losses."
        made.append(Section("Learning curves", [Charts(charts, note)]))
    if lost := _lost(jobs):
        made.append(Section("Where it loses, and what failed", [Sentences(lost)]))
    return made


def _table(folder: Path, jobs: Sequence[Job]) -> Table:
    keys = [k for k in dict.fromkeys(k for j in jobs for k in j.typed) if len({j.typed.get(k) for j in jobs}) > 1]
    others = [k for k in jobs[0].row if k not in _PLACES and k not in keys]
    columns = [Column("job", numeric=False), Column("status", numeric=False)]
    columns += [Column(k, "As typed for the job", numeric=False) for k in keys]
    columns += [Column("ratio, → better", "Loss of the best tuned baseline over that of the job's optimizer")]
    columns += [Column(k, numeric=k not in _WORDS) for k in others]
    bars = log_places({j.name: ratio_to_best(j.first) for j in jobs})
    rows = []
    for job in jobs:
        report = Path(job.name).name + "/report.html"
        point, ends = ratio_to_best(job.first)
        status = job.row["status"]
        rows.append([
            Cell(job.name, job.name, link=report if (folder / report).is_file() else ""),
            Cell(status, status, mark="left" if status == "ok" else "left worse"),
            *(Cell(job.typed.get(k, ""), job.typed.get(k), mark="left") for k in keys),
            Cell(with_interval(point, ends), point, bar=bars.get(job.name)),
            *(_cell(job.row[k]) for k in others),
        ])  # fmt: skip
    return Table("summary.csv, and ratios to the best tuned baselines", columns, rows)


def _cell(value: str) -> Cell:
    as_number = number({"value": value}, "value")
    if math.isnan(as_number):
        return Cell(value, value or None, mark="long" if len(value) > 40 else "left")
    return Cell(f"{as_number:g}" if as_number.is_integer() else show(as_number), as_number)


def _chart(folder: Path, jobs: Sequence[Job], task: str) -> Chart | None:
    found: dict[str, Rows] = {}
    for job in sorted((j for j in jobs if j.task == task), key=lambda j: _rank(number(j.first, "final", "mean"))):
        rows = read_csv(folder / Path(job.name).name / "curves.csv", "optimizer", "step", "median")
        rows = [r for r in rows if r["optimizer"] == text(job.first, "optimizer")]
        if rows and len(found) < _MAX_LINES:
            found[job.name] = rows
    if not found:
        return None
    shown = looks(found)
    steps = sorted({number(r, "step") for rows in found.values() for r in rows})
    lines = []
    for name, rows in found.items():
        at = {number(r, "step"): number(r, "median") for r in rows}
        lines.append(Line(name, shown[name], [at.get(s, math.nan) for s in steps]))
    return chart_of(f"{task}: median loss", steps, lines, "inner step", "loss")


def _rank(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _lost(jobs: Sequence[Job]) -> list[str]:
    told = []
    for job in jobs:
        point, ends = ratio_to_best(job.first)
        if ends[1] < 1:
            told.append(f"{job.name} ends above the best tuned baseline: ratio {with_interval(point, ends)}.")
        if job.row["status"] != "ok":
            reason = job.row.get("error") or "no reason is known"
            told.append(f"{job.name}: {job.row['status']}: {reason}")
    return told
