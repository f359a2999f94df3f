"""Is a run that was killed the run that was not? SIGKILL at random moments, in training, checkpoints and comparison.

python benchmarks/killed_runs.py --json docs/results/killed_runs.json

A small run with several episodes under way is run once to its end. Then it is started again and again, killed at a
moment that is drawn anew, resumed by `ckpt_path=<its last.ckpt>` and, every second time, killed in that too before it
is resumed for good; every third one is ended by SIGTERM in place of SIGKILL. At its end it must have the same
`metrics.csv` (without the speed), `comparison.json` (without seconds), weights, moments of the outer optimizer and
episodes, in both checkpoints. A run that is killed before its first checkpoint is started anew. `--kills 4` shows that
the script works.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _measure

from ph_l2o import cli
from ph_l2o.checkpoints import KEY, read_checkpoint

SETTINGS = (
    "debug=default", "optimizer=adam", "meta.outer_steps=400", "meta.num_problems=4", "meta.episodes=8",
    "meta.horizons=[6,9]", "meta.val_every=5", "evaluation.baselines=[sgd,momentum]", "evaluation.horizon=20",
)  # fmt: skip
OF_TIME = ("train/task_steps_per_s",)
SEED = 0  # of the moments


def _child(folder: str, arguments: tuple[str, ...]) -> None:
    os.chdir(folder)
    with open("output.txt", "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["train.py", *arguments]
    cli.train()


def run(folder: Path, *arguments: str, number: int = signal.SIGKILL, after: float | None = None) -> tuple[int, float]:
    """Run `train.py` in a process that has torch already; its exit status, and the seconds.

    Args:
        folder: Where.
        arguments: Of the command.
        number: A signal to send.
        after: Seconds until then; None: never.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ph_l2o.commands.train"])
    process = context.Process(target=_child, args=(str(folder), arguments))
    began = time.monotonic()
    process.start()
    process.join(after)
    if after is not None and process.is_alive():
        os.kill(process.pid or 0, number)
    process.join()
    return process.exitcode or 0, time.monotonic() - began


def result(folder: Path) -> dict[str, Any]:
    """What a run in this folder gave, without times."""
    (home,) = (path.parent for path in folder.glob("runs/20*/*/config.yaml"))
    with (home / "metrics.csv").open(newline="") as file:
        rows = [{k: v for k, v in row.items() if k not in OF_TIME} for row in csv.DictReader(file)]
    compared = json.loads((home / "comparison.json").read_text())["rows"]
    found: dict[str, Any] = {
        "metrics.csv": rows,
        "comparison.json": [{k: v for k, v in row.items() if "seconds" not in k} for row in compared],
    }
    for name in ("best", "last"):
        content = read_checkpoint(home / "checkpoints" / f"{name}.ckpt")
        parts = [content[part] for part in ("state_dict", "optimizer_states", "lr_schedulers")]
        found[f"{name}.ckpt"] = _plain([*parts, content[KEY]["episodes"]])
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value.tolist() if hasattr(value, "tolist") else value


def killed(folder: Path, seconds: float, rng: random.Random, index: int) -> dict[str, Any]:
    """Start a run, kill it once or twice, and let it come to its end.

    Args:
        folder: An empty one.
        seconds: That the undisturbed run took.
        rng: Draws the moments.
        index: Of the run.
    """
    number = signal.SIGTERM if index % 3 == 2 else signal.SIGKILL
    began: list[str] = []
    moments: list[str] = []
    for _ in range(1 + index % 2):
        run(folder, *(began or SETTINGS), number=number, after=rng.uniform(0.05, 1) * seconds)
        if any(json.loads(p.read_text())["status"] == "ok" for p in folder.glob("runs/20*/*/status.json")):
            return {"signal": signal.Signals(number).name, "moments": [*moments, "after the end"], "status": 0}
        last = next(folder.glob("runs/20*/*/checkpoints/last.ckpt"), None)
        compares = "meta-training took" in (folder / "output.txt").read_text()
        moments.append("in the comparison" if compares else "in training" if last else "before the first checkpoint")
        if last is None:
            for path in folder.glob("runs/20*"):
                path.rename(folder / f"before_{len(moments)}_{path.name}")
        began = [f"ckpt_path={last}"] if last else []
    return {
        "signal": signal.Signals(number).name, "moments": moments, "status": run(folder, *(began or SETTINGS))[0],
    }  # fmt: skip


def main() -> int:
    """Kill runs, and say whether any is not the undisturbed one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="runs that are killed")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.environ["WANDB_MODE"] = "disabled"
    rng, runs = random.Random(SEED), []
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary) / "whole"
        for _ in range(2):  # the first one starts the server of processes
            with contextlib.suppress(FileNotFoundError):
                whole.rename(whole.with_name("warm_up"))
            whole.mkdir()
            status, seconds = run(whole, *SETTINGS)
            assert status == 0, (whole / "output.txt").read_text()
        expected = result(whole)
        for index in range(arguments.kills):
            folder = Path(temporary) / str(index)
            folder.mkdir()
            found = killed(folder, seconds, rng, index)
            differs = ["exit status"] if found["status"] else [k for k, v in result(folder).items() if v != expected[k]]
            runs.append(found | {"differs": differs})
            told = f", differs in {', '.join(differs)}" if differs else ""
            _measure.say(f"{index + 1}: {found['signal']} {', '.join(found['moments'])}{told}")
            if found["status"]:
                _measure.say((folder / "output.txt").read_text()[-500:])
    bad = sum(bool(r["differs"]) for r in runs)
    _measure.say(f"{len(runs)} runs, {bad} of them not as the undisturbed one")
    _measure.write_json(arguments.json, {"settings": SETTINGS, "seconds": round(seconds, 2), "runs": runs})
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
