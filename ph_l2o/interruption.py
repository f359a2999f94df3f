"""Signals that ask this process to end, and where they take effect."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from ph_l2o.errors import Interrupted

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_AGAIN = 1.0  # seconds


class Interruption:
    """While it is entered, a signal that asks this process to end is noted, and takes effect where `here` says.

    What the process ignores, such as SIGHUP under `nohup`, it goes on to ignore. Python hands signals to the main
    thread alone; in others this does nothing.

    Args:
        signals: Which ones.

    Attributes:
        number: The last signal that came, or None.

    Raises:
        Interrupted: When it is left in good order after a signal that has had no effect yet.
    """

    def __init__(self, signals: list[signal.Signals] = SIGNALS):
        self.number: int | None = None
        self._signals, self._is_here = signals, False
        self._before: dict[int, Any] = {}
        self._again: threading.Timer | None = None

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            found = {number: signal.getsignal(number) for number in self._signals}
            self._before = {n: handler for n, handler in found.items() if handler not in (None, signal.SIG_IGN)}
            for number in self._before:
                signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is None and self.number is not None:
            raise Interrupted(self.number)

    def take_over(self) -> None:
        """Note signals again, after another has put handlers of its own in place: as Lightning, which would exit."""
        for number in self._before:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.number = number
        if self._is_here:
            if self._again is None or not self._again.is_alive():
                # Python loses what is raised in a callback, as of a weak reference.
                self._again = threading.Timer(_AGAIN, os.kill, (os.getpid(), number))
                self._again.daemon = True
                self._again.start()
            raise Interrupted(number)

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """Raise `Interrupted` in the block as soon as a signal comes, or at its start if one came before."""
        self._is_here = True
        try:
            if self.number is not None:
                raise Interrupted(self.number)
            yield
        finally:
            self._is_here = False
            if self._again is not None:
                self._again.cancel()
                self._again.join()


@contextlib.contextmanager
def raised_at_once() -> Iterator[None]:
    """In the block, SIGTERM and SIGHUP raise `Interrupted` wherever the process is, as Ctrl-C does by itself."""

    def end(number: int, frame: FrameType | None) -> None:
        del frame
        raise Interrupted(number)

    others = [n for n in SIGNALS if n != signal.SIGINT and signal.getsignal(n) == signal.SIG_DFL]
    for number in others:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in others:
            signal.signal(number, signal.SIG_DFL)
