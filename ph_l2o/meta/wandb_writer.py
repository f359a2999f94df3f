"""Calls of W&B beside the training: whatever becomes of W&B and its server, the training goes on."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

_GRACE = 5.0  # seconds in which its process must end when it is asked to
_MOST_WAITING = 20_000  # calls; a W&B that is so far behind does not take them any more


class WandbWriter:
    """Makes calls one after the other in a thread; after the first one that fails there are no more.

    Args:
        rest: What the user can do with what was recorded until then.
    """

    def __init__(self, rest: str):
        self._rest = rest
        self._has_failed = False
        self._calls: queue.Queue[Callable[[], Any] | None] = queue.Queue(_MOST_WAITING)
        self._thread = threading.Thread(target=self._work, name="wandb-writer", daemon=True)
        self._thread.start()

    def call(self, work: Callable[[], Any]) -> None:
        """Have a call made; at once, nothing is waited for."""
        if not self._has_failed:
            try:
                self._calls.put_nowait(work)
            except queue.Full:
                self._fail("it takes nothing more")

    def close(self, patience: float) -> None:
        """Wait until all calls are made, at most `patience` seconds; after a failure, end W&B's process."""
        if not self._has_failed:
            self._calls.put(None)
            self._thread.join(patience)
            if self._thread.is_alive():
                self._fail(f"no answer in {patience:.0f} s")
        if self._has_failed:
            _end_process(_GRACE)

    def _work(self) -> None:
        while (work := self._calls.get()) is not None:
            try:
                work()
            except Exception as error:
                self._fail(f"{type(error).__name__}: {error}".partition("\n")[0])
                return

    def _fail(self, why: str) -> None:
        if not self._has_failed:
            self._has_failed = True
            log.warning("W&B: stopped (%s), the run goes on without it; %s", why, self._rest)


def _end_process(patience: float) -> None:
    """End W&B's process, which may be dead or hang already, so that nothing waits for it when Python ends.

    It is asked first, so that it writes what it holds.
    """
    import wandb

    process = None
    with contextlib.suppress(Exception):
        process = wandb.setup()._connection._proc._process  # type: ignore[union-attr]
    asked = threading.Thread(target=_tear_down, daemon=True)
    asked.start()
    asked.join(patience)
    if process is not None and process.poll() is None:
        process.kill()
        process.wait()
    asked.join(patience)


def _tear_down() -> None:
    import wandb

    with contextlib.suppress(Exception, SystemExit):  # it would exit with the status of that process
        wandb.teardown()
