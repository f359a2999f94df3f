"""Progress of meta-training: a bar in a terminal, a line in a notebook, plain lines elsewhere."""

from __future__ import annotations

import logging
import math
import sys
import time
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

log = logging.getLogger(__name__)

_NOTEBOOK_EVERY = 1.0  # seconds


def _short(speed: float) -> str:
    """Three digits."""
    if not math.isfinite(speed):
        return str(speed)
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if speed >= 0.9995 * size:
            return f"{speed / size:.3g}{unit}"
    return f"{speed:.3g}"


def _duration(seconds: float) -> str:
    """As 28 s, 5:28 or 1:05:28."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


class MetaProgress(pl.Callback):
    """Shows outer step, meta-loss, speed in task-steps/s and time left.

    Args:
        line_every: Seconds between plain lines where there is no terminal, > 0.
    """

    def __init__(self, line_every: float = 10.0):
        if line_every <= 0:
            raise ValueError(f"callbacks.progress.line_every={line_every}: must be > 0 (seconds)")
        self.line_every = line_every
        self._bar: Progress | None = None
        self._handlers: list[tuple[logging.StreamHandler[Any], Any]] = []  # and their streams, without the bar
        self._began = self._last_line = 0.0
        self._first_step = 0
        self._console = Console(stderr=True)
        self._shown: Any = None  # of a notebook
        self._loss = self._speed = float("nan")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock and the bar."""
        self._began = self._last_line = time.monotonic()
        self._first_step = trainer.global_step
        self._console, self._shown = Console(stderr=True), None
        if trainer.is_global_zero and self._console.is_terminal and not self._console.is_jupyter:
            text = TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis"))
            self._bar = Progress(text, BarColumn(bar_width=None), console=self._console, expand=True)
            self._bar.start()
            self._bar.add_task("", total=trainer.max_steps, completed=trainer.global_step)
            self._take_terminal()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance."""
        metrics = trainer.callback_metrics
        loss, speed = float(metrics["train/outer_loss"]), float(metrics["train/task_steps_per_s"])
        self._loss = loss if self._loss != self._loss else self._loss + 0.1 * (loss - self._loss)
        self._speed = speed if self._speed != self._speed else self._speed + 0.1 * (speed - self._speed)
        now, done = time.monotonic(), trainer.global_step - self._first_step
        left = (now - self._began) / max(done, 1) * (trainer.max_steps - trainer.global_step)
        text = (
            f"outer step {trainer.global_step}/{trainer.max_steps}, meta-loss {self._loss:.3f}, "
            f"{_short(self._speed)} task-steps/s, {_duration(now - self._began)}, {_duration(left)} left"
        )
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=trainer.global_step, description=text)
        elif trainer.is_global_zero and now - self._last_line >= self._every():
            self._last_line = now
            self._say(text, in_place=True)

    def _every(self) -> float:
        return _NOTEBOOK_EVERY if self._console.is_jupyter else self.line_every

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what the validation found."""
        if not trainer.is_global_zero:
            return
        found = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        final, auc = ([v for k, v in found.items() if k.endswith(end)] for end in ("/final_loss", "/auc"))
        if len(final) == 1:
            what = f"loss {final[0]:.4g} at the end, {auc[0]:.4g} over all steps"
        else:  # losses of a mixture's members can't be compared
            what = f"score {found['val/score']:.4f}, mean log loss relative to the start, of {len(final)} tasks"
        text = f"outer step {trainer.global_step}: validation {what}"
        self._say(text)

    def _say(self, text: str, *, in_place: bool = False) -> None:
        """To the terminal, the log or, where nobody reads that, to stderr; a notebook keeps one line up to date."""
        if self._bar is not None:
            self._bar.console.print(text)
        elif log.isEnabledFor(logging.INFO):
            log.info(text)
        elif in_place and self._console.is_jupyter:
            self._show_in_notebook(text)
        else:
            print(text, file=sys.stderr)

    def _show_in_notebook(self, text: str) -> None:
        from IPython.display import Pretty, display  # type: ignore[import-not-found]

        if self._shown is None:
            self._shown = display(Pretty(text), display_id=True)
        else:
            self._shown.update(Pretty(text))

    def _take_terminal(self) -> None:
        """Lines of the log go above the bar, not into it, where both are on the terminal."""
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and getattr(handler.stream, "isatty", lambda: False)():
                self._handlers.append((handler, handler.stream))
                handler.setStream(FileProxy(self._console, handler.stream))

    def _stop(self) -> None:
        if self._bar is not None:
            for handler, stream in self._handlers:
                handler.setStream(stream)
            self._handlers.clear()
            self._bar.stop()
            self._bar = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the terminal as it was."""
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self._stop()
