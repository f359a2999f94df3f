"""Worker processes among which rows and tasks of an evaluation are shared out."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from ph_l2o.errors import ProcessError

_PR_SET_PDEATHSIG = 1  # of Linux's prctl


class Inline(Executor):
    """Does the work here, when it is submitted."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See `concurrent.futures`; an error is raised at once."""
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@contextlib.contextmanager
def workers(count: int, set_up: Callable[[], None]) -> Iterator[Executor]:
    """Processes that work until the block ends; with one, this process works itself.

    Args:
        count: Processes, >= 1.
        set_up: Is called first in each, and can be pickled.

    Raises:
        ProcessError: If one of them is lost.
    """
    if count == 1:
        yield Inline()
        return
    context = multiprocessing.get_context("spawn")  # a copy of this process would have its threads' locks
    pool = ProcessPoolExecutor(count, context, _begin, (set_up,))
    try:
        yield pool
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.kill()
        if isinstance(error, BrokenProcessPool):
            raise ProcessError(
                f"num_processes={count}: a process was killed, perhaps for want of memory; what is finished is in the "
                "cache, so run it again, perhaps with fewer processes"
            ) from error
        raise
    finally:
        pool.shutdown()


def _begin(set_up: Callable[[], None]) -> None:
    """What concerns the terminal is the first process's business; a worker ends with it, whatever ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    set_up()
