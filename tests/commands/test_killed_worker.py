"""A process of `strategy=ddp_cpu` is killed in the middle of training, as by a machine that runs out of memory."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_ddp import ROOT, SMALL, last, train

OUTER_STEPS = 80
SETTINGS = ("strategy=ddp_cpu", f"meta.outer_steps={OUTER_STEPS}", "meta.val_every=10")
BOUND = 60  # seconds until the other process has ended; it takes about 2 on a machine without other work


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until(condition, seconds: float = 120.0):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.01)
    return value


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def train_and_kill(victim: int, folder: Path, *arguments: str) -> str:
    """Kill one process after the next checkpoint; what the other has written to stderr when none is left."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    call = [sys.executable, str(ROOT / "train.py"), f"paths.runs={folder}", *SMALL, *SETTINGS, *arguments]
    errors, began = folder.with_name(f"stderr{victim}"), time.time()
    with errors.open("w") as stderr:
        first = subprocess.Popen(call, cwd=folder.parent, env=environment, stdout=subprocess.DEVNULL, stderr=stderr)
        wait_until(lambda: any(p.stat().st_mtime > began for p in folder.glob("*/*/checkpoints/last.ckpt")))
        (second,) = children(first.pid)
        os.kill((first.pid, second)[victim], signal.SIGKILL)
        wait_until(lambda: not is_running(first.pid) and not is_running(second), BOUND)
        assert first.wait() == (-signal.SIGKILL if victim == 0 else 1)
    return errors.read_text()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_the_others_end_and_the_run_resumes_bit_for_bit(tmp_path):
    """Killed twice, and resumed each time; then the weights are those of a run that nobody disturbed."""
    folder, whole, done_before = tmp_path / "runs", tmp_path / "whole", 0
    for victim, arguments in ((0, ()), (1, ("ckpt_path=last",))):
        (line,) = train_and_kill(victim, folder, *arguments).splitlines()
        stopped, path = last(folder)
        assert line.startswith("error: another process of this run ended or does not answer (")
        assert line.endswith(f"resume with ckpt_path=last or ckpt_path={os.path.relpath(path, tmp_path)}")
        assert status(path) == "error"
        assert done_before < stopped["global_step"] < OUTER_STEPS
        done_before = stopped["global_step"]

    for runs, arguments in ((folder, ("ckpt_path=last",)), (whole, ())):
        done = train(runs, *SETTINGS, *arguments)
        assert done.returncode == 0, done.stderr
    (resumed, path), undisturbed = last(folder), last(whole)[0]
    assert resumed["global_step"] == undisturbed["global_step"] == OUTER_STEPS
    for name, value in undisturbed["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], value)
    assert status(path) == "ok"


def status(checkpoint: Path) -> str:
    return json.loads((checkpoint.parents[1] / "status.json").read_text())["status"]
