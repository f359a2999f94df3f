"""Run the shipped weights anew on the tasks of a result of `evaluate.py suite=…`, whose baselines stay as measured.

    python benchmarks/refresh_suite.py docs/results/generalise.json --data data
    python benchmarks/refresh_suite.py docs/results/generalise_scheduled.json --rows runs/…/suite.json

For when the optimizer has changed and the baselines have not: tuning those takes most of an hour, this takes six
minutes on one core. Problems come from the same keys, so pairs stay pairs. The file names the revision of these rows,
and in `made` that of the baselines. With `--rows` the learned optimizers of another result of the same suite, which has
the same reference among its rows, take the place of those of the same names, or are new, as are baselines that the
file lacks: held-out losses and speed-ups are taken over, ratios of losses are computed anew. With `--schedule` it
prints, and does not write, what the weights reach with `total_steps` set to each task's horizon.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import _measure
import numpy as np
import torch
from hydra import compose, initialize_config_module

from ph_l2o.checkpoints import SHIPPED, load_weights
from ph_l2o.commands.configuration import register
from ph_l2o.commands.numerics import set_up_torch
from ph_l2o.commands.run_suite import build_suite
from ph_l2o.evaluation import estimates
from ph_l2o.evaluation.suite_comparison import REFERENCE
from ph_l2o.evaluation.suite_ratios import Draws, Ratio, summarize_ratios, task_ratios
from ph_l2o.evaluation.suite_runs import Run, cached_run
from ph_l2o.keys import ProblemKeys, Purpose

Row = dict[str, Any]
# Of the baselines' curves and held-out losses of before, which the file lacks or has of another revision.
_NEEDS_CURVES = ("held_out_ratio", "speed_up", "steps_to_reference")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets")
    parser.add_argument("--schedule", action="store_true")
    parser.add_argument("--rows", type=Path, help="another result, whose learned rows are taken")
    arguments = parser.parse_args()
    set_up_torch(1)
    content = json.loads(arguments.file.read_text())
    if arguments.rows:
        _measure.write_json(arguments.file, with_rows_of(content, json.loads(arguments.rows.read_text())))
        return
    register()
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("evaluate", [f"suite={content['suite']}", f"paths.data={arguments.data.resolve()}"])
    ratios: dict[str, dict[str, dict[str, Ratio]]] = {}
    draws: dict[str, Draws] = {}
    for number, (task, entry) in enumerate(build_suite(config).items()):
        rows = {row["optimizer"]: row for row in content["rows"] if row["task"] == task}
        runs = {}
        for name in SHIPPED.keys() & rows.keys():
            optimizer: Any = load_weights(SHIPPED[name])
            optimizer.total_steps = entry.horizon if arguments.schedule else None
            how = {"seed": content["seed"], "device": "cpu", "dtype": torch.float32, "chunk": None}
            runs[name] = cached_run(
                optimizer, *entry, num_problems=content["num_problems"], cache_dir=None, label=task, **how
            )
            before, now = rows[name]["loss"], float(runs[name].judged.mean())
            _measure.say(f"{task}, {name}: {now:.4g}, was {before:.4g}")
        references, untuned = (
            {name: _as_reference(row) for name, row in rows.items() if row["kind"] == kind}
            for kind in ("baseline", "untuned")
        )
        generator = ProblemKeys(content["seed"], "test", number, ()).episode_generator(Purpose.BOOTSTRAP)
        judged = {name: run.judged for name, run in runs.items()}
        reference = content.get("reference", REFERENCE)
        _, ratios[task], draws[task] = task_ratios(judged, references, reference, generator, untuned)
        for name, run in runs.items():
            for key in _NEEDS_CURVES:
                rows[name].pop(key, None)
            rows[name].update(_measured(run, ratios[task][name]))
    for name, parts in summarize_ratios(ratios, draws).items():
        content["summary"][name] = {f"ratio_to_{key}": found._asdict() for key, found in parts.items()}
        print(name, {key: (round(found.iqm, 3), round(found.worst, 3)) for key, found in parts.items()})
    if not arguments.schedule:
        made = {name: content[name] for name in ("git_revision", "versions") if name in content}
        content["made"] = {"baselines": content.get("made", {}).get("baselines") or made}
        content |= _measure.made_with(1)
        _measure.write_json(arguments.file, content)


def with_rows_of(content: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """A result with the learned optimizers of another one of the same problems, and the baselines that it lacks.

    Its own learned ones of other names stay, and its own baselines, whose losses are reproducible.
    """
    for key in ("suite", "seed", "num_problems", "reference"):
        if content[key] != other[key]:
            raise SystemExit(f"--rows: {key}={other[key]}: must be {content[key]}, as in the file")
    own = {row["optimizer"] for row in content["rows"]}
    taken = {row["optimizer"] for row in other["rows"] if row["kind"] == "learned" or row["optimizer"] not in own}
    new_baselines = any(row["kind"] != "learned" for row in other["rows"] if row["optimizer"] in taken)
    names = list(dict.fromkeys([*content["optimizers"], *(row["optimizer"] for row in other["rows"])]))
    kept = [row for row in content["rows"] if row["optimizer"] not in taken]
    rows = [*kept, *(row for row in other["rows"] if row["optimizer"] in taken)]
    tasks = dict.fromkeys(row["task"] for row in content["rows"])
    if lacking := tasks.keys() - {row["task"] for row in other["rows"]}:
        raise SystemExit(f"--rows: has no {', '.join(sorted(lacking))}; finish it first")
    rows.sort(key=lambda row: (list(tasks).index(row["task"]), names.index(row["optimizer"])))
    ratios: dict[str, dict[str, dict[str, Ratio]]] = {}
    draws: dict[str, Draws] = {}
    for number, task in enumerate(tasks):
        # Where there are other baselines, the best one can be another for all.
        here = {row["optimizer"]: row for row in rows if row["task"] == task}
        judged = {name: row for name, row in here.items() if new_baselines or name in taken}
        references, untuned = (
            {name: _as_reference(row) for name, row in here.items() if row["kind"] == kind}
            for kind in ("baseline", "untuned")
        )
        losses = {name: _as_judged(row) for name, row in judged.items()}
        generator = ProblemKeys(content["seed"], "test", number, ()).episode_generator(Purpose.BOOTSTRAP)
        best, ratios[task], draws[task] = task_ratios(losses, references, content["reference"], generator, untuned)
        for name, row in judged.items():
            found = {f"ratio_to_{key}": x for key, x in ratios[task][name].items()}
            row |= {key: {"ratio": x.value, "ci95": list(x.ci95)} for key, x in found.items()} | {"best_baseline": best}
    summary = {name: dict((other if name in taken else content)["summary"][name]) for name in names}
    for name, parts in summarize_ratios(ratios, draws).items():
        summary[name] |= {f"ratio_to_{key}": found._asdict() for key, found in parts.items()}
        print(name, {key: (round(found.iqm, 3), round(found.worst, 3)) for key, found in parts.items()})
    made = {key: content[key] for key in ("git_revision", "versions", "machine") if key in content}
    made = dict(content.get("made", {}).get("baselines") or made)
    if new_baselines:
        made["git_revision"] = f"{made['git_revision']}, {other['git_revision']}"
    if any(row["kind"] == "learned" for row in kept):
        revisions = dict.fromkeys([*other["git_revision"].split(", "), *content["git_revision"].split(", ")])
        other = {**other, "git_revision": ", ".join(revisions)}
    return {**other, "optimizers": names, "summary": summary, "rows": rows, "made": {"baselines": made}}


def _as_judged(row: Row) -> Any:
    """Losses, those that diverged infinite; the file says how many, so they are taken for the highest."""
    losses = np.array([float(x) for x in row["losses"]])
    losses[np.argsort(losses)[len(losses) - row["diverged"] :]] = np.inf
    return losses


def _as_reference(row: Row) -> Any:
    losses, starts = (np.array([float(x) for x in row[key]]) for key in ("losses", "starts"))
    return np.minimum(losses, starts) if row["diverged"] else losses


def _measured(run: Run, ratios: dict[str, Ratio]) -> Row:
    return {
        "loss": estimates.mean(run.losses),
        "losses": run.losses.tolist(),
        "held_out_loss": None if run.held_out is None else estimates.mean(run.held_out),
        "held_out_losses": None if run.held_out is None else run.held_out.tolist(),
        "diverged": int(run.diverged.sum()),
        "step_seconds": run.step_seconds,
        **{f"ratio_to_{key}": {"ratio": x.value, "ci95": list(x.ci95)} for key, x in ratios.items()},
    }


if __name__ == "__main__":
    main()
