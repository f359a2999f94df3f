"""What a terminal shows of a training."""

import os
import pty
import re
import subprocess
import sys

import pytest

from ph_l2o.meta.progress import _duration, _short

SCRIPT = """
import logging, sys
from types import SimpleNamespace
from ph_l2o.meta import MetaProgress
logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
metrics = {"train/outer_loss": -12.3456, "train/task_steps_per_s": 123456.0}
trainer = SimpleNamespace(global_step=0, max_steps=30000, is_global_zero=True, callback_metrics=metrics)
progress = MetaProgress()
progress.on_train_start(trainer, None)
for step in range(1, 30001, 10000):
    trainer.global_step = step
    progress.on_train_batch_end(trainer, None, None, None, 0)
    progress._bar.refresh()
    logging.info("a line of the log [bold]")
progress.on_train_end(trainer, None)
logging.info("after it")
"""


def shown_on_a_terminal() -> list[str]:
    """Lines, as often as they are drawn, without the terminal's commands."""
    outside, inside = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "LINES": "24", "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdin=inside, stdout=inside, stderr=inside, env=environment
    )
    os.close(inside)
    text = b""
    while True:
        try:
            part = os.read(outside, 65536)
        except OSError:  # Linux says so at the end
            break
        if not part:
            break
        text += part
    os.close(outside)
    assert process.wait() == 0, text.decode()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.decode())
    return [line for line in re.split(r"[\r\n]+", plain) if line.strip()]


def test_the_bar_fits_80_columns_and_the_log_stands_apart() -> None:
    lines = shown_on_a_terminal()
    assert max(map(len, lines)) <= 80
    bars = [line for line in lines if "outer step" in line]
    assert re.match(r"outer step 20001/30000, meta-loss -12\.346, 123k task-steps/s, \d+ s, \d+ s left", bars[-1])
    logged = [line.rstrip() for line in lines if "a line of the log" in line]
    assert logged == ["a line of the log [bold]"] * 3
    assert lines[-1].rstrip() == "after it"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (100, "1:40"), (3599.6, "1:00:00"), (36610, "10:10:10")]
)
def test_durations(seconds: float, text: str) -> None:
    assert _duration(seconds) == text


@pytest.mark.parametrize(
    ("speed", "text"), [(0.5, "0.5"), (999.6, "1k"), (2142.3, "2.14k"), (1.5e6, "1.5M"), (float("nan"), "nan")]
)
def test_speeds(speed: float, text: str) -> None:
    assert _short(speed) == text
