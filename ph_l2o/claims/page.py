"""docs/study.md and README's rows of it, made of the result files alone."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ph_l2o.claims.verdicts import (
    FAILS,
    HOLDS,
    NOT,
    REPRODUCED,
    RULES,
    about_ours,
    counted,
    figures,
    is_bar,
    number,
    outcome,
    sentence,
    verdict,
)
from ph_l2o.errors import ReportError
from ph_l2o.files import short_revision, write_atomically

ORDER = ("saddles", "quadratic", "mnist", "relu_transfer", "generalisation", "horizon", "structure")
BEYOND = "beyond the study"  # the summary of claims that the study does not make
START, END = "<!-- study -->", "<!-- /study -->"
INTRODUCTION = (
    "Made by `python evaluate.py experiment=study` from trainings by `python train.py experiment=study`; do not edit. "
    "The study is [*Can we learn gradients by Hamiltonian Neural Networks?*](https://arxiv.org/abs/2111.00565) "
    "(Timofeev, Afonin and Liu 2020). Each claim is tried by the study's own recipes, and with everything at its best: "
    "optimizers trained by settings that were searched on validation problems, baselines tuned there with schedules. "
    "All rows of a table have the same problems, starts and mini-batches ([comparison.md](comparison.md)). Diverged "
    "problems count; they are those whose loss is not finite or ends above its start.",
    "Intervals are of 95 %: over problems by the bootstrap, of shares Wilson's; where a row has several trainings, "
    "they also have Student's t over these. " + RULES,
)
_GROUPS = {"study": "by the study's recipes", "fair": "at its best", "shipped": "as shipped"}
_NAMES = {"final": "loss at the end", "last10": "loss over the last 10 steps", "all": "loss over all steps"}

Results = Mapping[str, Mapping[str, Any]]  # by claim


def load_results(folder: Path) -> dict[str, dict[str, Any]]:
    """The result files of a folder, in the order of the page.

    Raises:
        ReportError: If one is damaged.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            found[path.stem] = json.loads(path.read_text())
            _ = found[path.stem]["measurements"], found[path.stem]["contrasts"]
        except (ValueError, KeyError, TypeError) as error:
            raise ReportError(f"{path}: is damaged ({error}); put a good copy in its place, or run again") from error
    return {name: found[name] for name in sorted(found, key=_place)}


def _place(name: str) -> tuple[int, str]:
    return (ORDER.index(name), "") if name in ORDER else (len(ORDER), name)


def write_page(results: Results, docs: Path) -> Path:
    """Write `study.md`, and the rows of the README beside the folder, where that has a place for them."""
    readme = docs.absolute().parent / "README.md"
    if readme.is_file() and (text := readme.read_text()) != (made := with_rows(text, results)):
        write_atomically(readme, made)
    return write_atomically(docs / "study.md", page(results))


def page(results: Results) -> str:
    """The page."""
    parts = ["# The published study, settled", *map(_wrapped, INTRODUCTION)]
    parts.append(summary_table(results) if results else "Nothing is measured yet.")
    for name, result in results.items():
        parts += _section(name, result)
    return "\n\n".join(parts) + "\n"


def with_rows(text: str, results: Results) -> str:
    """A README with the table between its two marks made anew; as it is where it has none."""
    made = summary_table(results, "docs/study.md")
    return re.sub(f"(?<={START}\n).*?(?={END})", lambda _: f"\n{made}\n\n", text, flags=re.DOTALL)


def summary_table(results: Results, place: str = "") -> str:
    """A row for each of the study's claims, of which one can have several parts."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for result in results.values():
        groups.setdefault(result["summary"], []).append(result)
    rows = []
    for claimed, parts in groups.items():
        several = len(parts) > 1
        verdicts = [f"{_link(p, place)}: **{_verdict(p)}**" if several else
                    f"[**{_verdict(p)}**]({place}#{_anchor(p['title'])})" for p in parts]  # fmt: skip
        because = [_headline(counted(p["contrasts"]), p) for p in parts]
        ours = [_headline(about_ours(p["contrasts"]), p) for p in parts]
        rows.append([claimed, *("<br>".join(cell) for cell in (verdicts, because, ours))])
    return _table(["the study says", "verdict", "because", "our optimizer"], rows, left=4)


def _verdict(result: Mapping[str, Any]) -> str:
    """In other words where the study claims nothing that could be reproduced."""
    found = verdict(result["contrasts"])
    return {REPRODUCED: HOLDS, NOT: FAILS}.get(found, found) if result["summary"] == BEYOND else found


def _link(result: Mapping[str, Any], place: str) -> str:
    return f"[{result['claim'].replace('_', ' ')}]({place}#{_anchor(result['title'])})"


def _anchor(title: str) -> str:
    """That of a heading on GitHub."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _headline(contrasts: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> str:
    """The sentence that tells most: the first one that is marked, or the first."""
    if not contrasts:
        return "–"
    chosen = next((c for c in contrasts if c.get("headline")), contrasts[0])
    told = [chosen]
    if outcome(chosen) != HOLDS:  # and one that holds, if there is one
        told += [c for c in contrasts if outcome(c) == HOLDS][:1]
    return "; ".join(f"{c['says'].rstrip('.')}: {outcome(c)}, {figures(c, _labels(result))}" for c in told)


def _section(name: str, result: Mapping[str, Any]) -> list[str]:
    labels = _labels(result)
    contrasts = result["contrasts"]
    parts = [f"## {result['title']}", _wrapped(f"**The study**: {result['claimed']}")]
    parts.append(_wrapped(f"**Verdict: {_verdict(result)}.** {_counted(contrasts)}"))
    parts.append("\n".join(f"- {sentence(c, labels)}" for c in counted(contrasts)))
    if ours := about_ours(contrasts):
        parts += ["Our optimizer, which the study does not have:", "\n".join(f"- {sentence(c, labels)}" for c in ours)]
    if bars := [c for c in contrasts if is_bar(c)]:
        parts += ["Bars:", "\n".join(f"- {sentence(c, labels)}" for c in bars)]
    if result.get("figure"):
        parts += [f"![{result['title']}](images/study_{name}.png)", _wrapped(result["figure"]["says"])]
    if result["notes"]:
        parts.append(_wrapped(result["notes"]))
    for measurement in result["measurements"].values():
        parts += [] if not measurement.get("tabled", True) else _measurement(measurement)
    parts.append(_wrapped(_made(result)))
    return parts


def _labels(result: Mapping[str, Any]) -> dict[str, str]:
    """Of rows, by name; with their recipe, since a label can be that of several."""
    rows = [(n, row) for m in result["measurements"].values() for n, row in m["rows"].items()]
    return {n: f"{row['label']} ({_GROUPS[row['recipe']]})" for n, row in rows}


def _counted(contrasts: Sequence[Mapping[str, Any]]) -> str:
    """How many sentences hold under each recipe."""
    texts = []
    for recipe, words in _GROUPS.items():
        own = [c for c in counted(contrasts) if c["recipe"] == recipe]
        if own:
            texts.append(f"{words}, {sum(outcome(c) == HOLDS for c in own)} of {len(own)}")
    return f"Sentences that hold: {'; '.join(texts)}." if texts else ""


def _measurement(measurement: Mapping[str, Any]) -> list[str]:
    rows, reference = measurement["rows"], measurement["reference"]
    of = _NAMES.get(str(measurement["measure"]), str(measurement["measure"]).replace("_", " "))
    told = f"{of[:1].upper()}{of[1:]} on {measurement['num_problems']:,} problems, `{' '.join(measurement['task'])}`, "
    told += f"{measurement['horizon']:,} steps."
    if reference is not None:
        told += f" Differences and ratios are to {rows[reference]['label']} ({_GROUPS[rows[reference]['recipe']]})."
    if published := measurement.get("published"):
        texts = ", ".join(f"{number(x)} ({whose})" for whose, x in published.items())
        told += f" Published by others, in a protocol of their own: {texts}."
    if spread := _spread(rows):
        told += f" {spread}"
    return [f"### {measurement['title']}", _wrapped(told), _rows_table(measurement)]


def _spread(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """How much of a table of means over 100 problems is noise, beside published figures."""
    known = [float(r["spread_of_means"]) for r in rows.values() if r["published"] is not None]
    if not known:
        return ""
    shown = list(dict.fromkeys(map(number, (min(known), max(known)))))
    return f"A mean over 100 problems, as the published ones are, has a standard deviation of {' to '.join(shown)}."


def _rows_table(measurement: Mapping[str, Any]) -> str:
    rows = measurement["rows"].values()
    has_reference = measurement["reference"] is not None
    published = any(r["published"] is not None or r["again"] is not None for r in rows)
    more = [
        n for n in dict.fromkeys(n for r in rows for n in r["measures"]) if n not in (*_NAMES, measurement["measure"])
    ]
    is_median = measurement["statistic"] == "median"
    header = ["optimizer", "recipe", "learning rate"]
    header += ["median"] if is_median else ["mean", "median", "geo. mean", "IQM"]
    if has_reference:
        header += ["ratio of medians"] if is_median else ["difference", "ratio"]
    header += ["diverged"] if any(r["diverged"] is not None for r in rows) else []
    header += [name.replace("_", " ") for name in more]
    header += ["published", "again"] if published else []
    lines = []
    for row in rows:
        line = [row["label"], _GROUPS[row["recipe"]], _rate(row)]
        shown = [
            _estimate(row["mean"]),
            *(number(x) for x in (row["median"]["value"], row["geometric_mean"], row["iqm"])),
        ]
        line += [_estimate(row["median"])] if is_median else shown
        if has_reference:
            line += [_estimate(row[key]) for key in (("ratio",) if is_median else ("difference", "ratio"))]
        if "diverged" in header:
            count = row["seeds"] * measurement["num_problems"]
            line.append("–" if row["diverged"] is None else f"{row['diverged']:,} of {count:,}")
        line += [_estimate(row["measures"].get(name)) for name in more]
        line += [number(row["published"]), number(row["again"])] if published else []
        lines.append(line)
    return _table(header, lines, left=2)


def _rate(row: Mapping[str, Any]) -> str:
    if row.get("trainings"):
        changed = [f"{k}={v}" for k, v in row["set"].items()]
        several = [f"{row['seeds']} trainings"] if row["seeds"] > 1 else []
        return ", ".join(changed + several) or "–"
    if row.get("lr") is None:
        return "–"
    schedule = f", {row['schedule']}" if row.get("schedule") and row["schedule"] != "constant" else ""
    return number(row["lr"]) + schedule + (", tuned elsewhere" if row.get("tuned_on") else "")


def _estimate(estimate: Mapping[str, Any] | None) -> str:
    if estimate is None:
        return "–"
    return f"{number(estimate['value'])} [{', '.join(number(end) for end in estimate['ci95'])}]"


def _made(result: Mapping[str, Any]) -> str:
    versions = result["versions"]
    words = f"Made by `{result['command']}` on {result['machine']}, torch {versions['torch']}"
    revision = f", at {short_revision(result['git_revision'])}" if result.get("git_revision") else ""
    after = {name: f" after `{first}`" for name, first in (result.get("after") or {}).items()}
    trainings = _by_seeds(result["trainings"]).items()
    trainings = ", ".join(f"`{name}` ({words}){after.get(name, '')}" for name, words in trainings)
    runs = sum(row.get("tuning_runs", 0) for m in result["measurements"].values() for row in m["rows"].values())
    tuning = f" Baselines were tuned by {runs:,} runs of a problem." if runs else ""
    return f"{words}{revision}.{tuning}" + (f" Trainings: {trainings}." if trainings else "")


def _by_seeds(trainings: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Overrides by name; those that differ in their seeds alone are one entry."""
    found: dict[str, str] = {}
    seeds: dict[str, list[str]] = {}
    for name, overrides in trainings.items():
        base, _, seed = name.rpartition("_seed")
        if base and f"seed={seed}" in overrides:
            seeds.setdefault(base, []).append(seed)
            found[base] = f"{' '.join(o for o in overrides if o != f'seed={seed}')} seed={','.join(seeds[base])}"
        else:
            found[name] = " ".join(overrides)
    return found


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> str:
    """In Markdown; the first columns are words, the others numbers."""
    lines = [header, ["---"] * left + ["---:"] * (len(header) - left), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)
