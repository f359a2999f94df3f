"""A run of `strategy=ddp_cpu` is stopped: by a signal, then by a process that is killed, as for want of memory."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_ddp import ROOT, SMALL, last, train
from test_workers import is_running, wait_until

OUTER_STEPS = 40
SETTINGS = ("strategy=ddp_cpu", f"meta.outer_steps={OUTER_STEPS}", "meta.val_every=4")


def train_and_stop(folder: Path, *arguments: str, kill: bool) -> str:
    """Kill the second process after some steps, or end the command; what is on stderr when none is left."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    call = [sys.executable, str(ROOT / "train.py"), f"paths.runs={folder}", *SMALL, *arguments]
    before = max(map(steps, folder.glob("*/*")), default=0)
    with subprocess.Popen(call, cwd=folder.parent, env=environment, stderr=subprocess.PIPE, text=True) as command:
        wait_until(lambda: command.poll() is not None or max(map(steps, folder.glob("*/*")), default=0) > before)
        workers = [int(i) for i in Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text().split()]
        if kill:
            os.kill(workers[1], signal.SIGKILL)
        else:
            command.terminate()
        _, errors = command.communicate(timeout=60)  # it takes about 2 on a machine without other work
    assert command.returncode == (1 if kill else 143) and len(workers) == 2 and not any(map(is_running, workers))
    return errors


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_the_others_end_and_the_run_resumes_bit_for_bit(tmp_path):
    """The weights are those of a run that nobody disturbed."""
    folder, whole = tmp_path / "runs", tmp_path / "whole"
    (line,) = train_and_stop(folder, *SETTINGS, kill=False).splitlines()
    path = last(folder)[1]
    assert line == f"interrupted by SIGTERM; resume with `python train.py ckpt_path={os.path.relpath(path, tmp_path)}`"
    assert status(path) == "interrupted"
    (line,) = train_and_stop(folder, *SETTINGS, "ckpt_path=last", kill=True).splitlines()
    stopped, path = last(folder)
    assert line.startswith("error: process 1 of this run (id ") and ") was ended by SIGKILL; " in line
    assert line.endswith(f"; resume with `python train.py ckpt_path={os.path.relpath(path, tmp_path)}`")
    assert status(path) == "error"
    assert 0 < stopped["global_step"] < OUTER_STEPS

    for runs, arguments in ((folder, ("ckpt_path=last",)), (whole, ())):
        done = train(runs, *SETTINGS, *arguments)
        assert done.returncode == 0, done.stderr
    (resumed, path), undisturbed = last(folder), last(whole)[0]
    assert resumed["global_step"] == undisturbed["global_step"] == OUTER_STEPS
    for name, value in undisturbed["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], value)
    assert status(path) == "ok"


def steps(run: Path) -> int:
    """Rows of a run's `metrics.csv`, which are written before each checkpoint."""
    path = run / "metrics.csv"
    return path.read_text().count("\n") if path.is_file() else 0


def status(checkpoint: Path) -> str:
    return json.loads((checkpoint.parents[1] / "status.json").read_text())["status"]
