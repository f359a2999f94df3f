"""All benchmarks: Markdown tables on standard output, progress beside them, and one JSON file.

python benchmarks/run.py --json results.json
python benchmarks/run.py --only meta_training,memory
python benchmarks/run.py --quick                         # whether all of it runs; its numbers mean nothing
python benchmarks/run.py --reference path/to/script.py   # ratios to the same meta-training in another script

A reference is a Python file with `meta_train`, `Controller`, `Quadratic` and `MnistMlp`: the same optimizer in one
script. It runs in turns with ours, on the same problems' sizes, truncation and episode lengths.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _measure
from _results import SCHEMA
from suite import GROUPS
from suite.options import Options

LEAST_REPETITIONS = 5


def arguments_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the numbers; written after each group")
    parser.add_argument("--only", metavar="GROUP[,GROUP]", default="", help=f"of {', '.join(GROUPS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="a smoke run of less than a minute, with tiny sizes")
    parser.add_argument("--repetitions", type=int, help="of each measurement, >= 5 (default: 5; with --quick: 2)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default: 1)")
    parser.add_argument("--reference", type=Path, help="a script to run in turns with ours, in compile_modes")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets (default: data)")
    found = parser.parse_args(argv)
    found.only = [name for name in found.only.split(",") if name] or list(GROUPS)
    for name in found.only:
        if name not in GROUPS:
            parser.error(f"--only {name}: must be of {', '.join(GROUPS)}")
    if found.repetitions is None:
        found.repetitions = 2 if found.quick else LEAST_REPETITIONS
    least = 1 if found.quick else LEAST_REPETITIONS
    if found.repetitions < least:
        parser.error(f"--repetitions {found.repetitions}: must be >= {least}")
    if found.threads < 1:
        parser.error(f"--threads {found.threads}: must be >= 1")
    if found.reference is not None and not found.reference.is_file():
        parser.error(f"--reference {found.reference}: no such file")
    return found


def group(name: str, options: Options) -> dict[str, Any]:
    """Measure a group; an error in it is part of the result, so that the others are not lost."""
    _measure.say(f"{name}:")
    began, found, error = time.perf_counter(), _measure.Found(), None
    module = importlib.import_module(f"suite.{name}")
    try:
        found = module.measured(options)
    except Exception as caught:
        traceback.print_exc()
        error = f"{type(caught).__name__}: {caught}".partition("\n")[0]
    return {
        "about": (module.__doc__ or "").partition("\n")[0],
        "seconds": time.perf_counter() - began,
        "entries": found.entries,
        "skipped": found.skipped,
        "error": error,
    }


def markdown(name: str, result: dict[str, Any]) -> str:
    """A group: what it is, its tables, and what was not measured for which reason."""
    own = getattr(importlib.import_module(f"suite.{name}"), "tables", None)
    parts = [result["about"], *(own(result["entries"]) if own else [table(result["entries"])])]
    skipped: dict[str, list[str]] = {}
    for what, why in result["skipped"].items():
        skipped.setdefault(why, []).append(what)
    parts += [f"Not measured: {'; '.join(names)} ({why})." for why, names in skipped.items()]
    if result["error"]:
        parts.append(f"Failed: {result['error']}")
    return "\n\n".join(parts)


def table(entries: Sequence[dict[str, Any]]) -> str:
    """A row for each entry, and a column for the ratios to each reference."""
    if not entries:
        return "No entries."
    references = list(dict.fromkeys(_short(other) for e in entries for other in e["ratios"]))
    rows = []
    for e in entries:
        ratios = {_short(other): _measure.spread(found) for other, found in e["ratios"].items()}
        warm = "–" if e["warm_up_seconds"] is None else _measure.number(e["warm_up_seconds"], 2)
        rows.append(
            (e["name"], f"{_measure.spread(e)} {e['unit']}", warm, *(ratios.get(other, "–") for other in references))
        )
    return _measure.table(("", "measured", "warm-up, s", *(f"ratio to {other}" for other in references)), rows)


def _short(reference: str) -> str:
    """Without what the names of one contest share, a task in front or a size behind."""
    parts = [p for p in reference.split(", ") if p not in ("quadratic", "mnist") and " × " not in p]
    return ", ".join(parts) or reference


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print tables, write JSON; 1 if a group failed."""
    arguments = arguments_of(argv)
    os.environ |= {"OMP_NUM_THREADS": str(arguments.threads), "MKL_NUM_THREADS": str(arguments.threads)}
    import torch

    from ph_l2o.commands.numerics import set_up_torch

    set_up_torch(arguments.threads)
    for noisy in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    options = Options(
        arguments.repetitions, arguments.threads, arguments.data.resolve(), arguments.reference, arguments.quick
    )
    settings = {name: getattr(arguments, name) for name in ("only", "quick", "repetitions", "threads")}
    settings["reference"] = arguments.reference and arguments.reference.name
    made = _measure.made_with(arguments.threads)
    result: dict[str, Any] = {"schema": SCHEMA, **made, "settings": settings, "groups": {}}
    print(
        f"{result['machine']['words']}; torch {torch.__version__}, {arguments.threads} thread(s). Median (minimum – "
        f"maximum) of {arguments.repetitions} repetitions in turns."
    )
    for name in arguments.only:
        result["groups"][name] = group(name, options)
        print(f"\n## {name}\n\n{markdown(name, result['groups'][name])}")
        if arguments.json is not None:
            _measure.write_json(arguments.json, result)
    return int(any(found["error"] for found in result["groups"].values()))


if __name__ == "__main__":
    raise SystemExit(main())
