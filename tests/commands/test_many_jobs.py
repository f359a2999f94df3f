"""Two hundred jobs in one process leave no memory, threads or open files behind."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import os
from pathlib import Path
from ph_l2o.commands.sweeps.multirun import SweepSummary

original = SweepSummary.on_job_end

def counted(self, config, **kwargs):
    original(self, config, **kwargs)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    files = len(os.listdir("/proc/self/fd"))
    with open("counts.csv", "a") as file:
        print(int(status["VmRSS"].split()[0]) / 1024, int(status["Threads"]), files, sep=",", file=file)

SweepSummary.on_job_end = counted
from ph_l2o.cli import train
train()
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_grows(tmp_path):
    typed = ["--multirun", "debug=default", "optimizer=sgd", "compare=false", "seed=range(200)"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    subprocess.run(
        [sys.executable, "-c", SCRIPT, *typed], cwd=tmp_path, env=environment, check=True, capture_output=True
    )
    with (tmp_path / "counts.csv").open() as file:
        memory, threads, files = zip(*(map(float, row) for row in csv.reader(file)), strict=True)
    assert len(memory) == 200
    assert set(threads[10:]) == {threads[10]} and set(files[10:]) == {files[10]}
    assert memory[-1] - memory[50] < 15  # MiB; the garbage collector's turns are about 10 apart
