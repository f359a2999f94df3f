"""Processes that share out the runs of a comparison."""

from __future__ import annotations

import contextlib
import io
import logging
import logging.handlers
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, Self

from ph_l2o.errors import Interrupted, ProcessError, WorkerError
from ph_l2o.interruption import Interruption

Parts = Mapping[str, Any]

_GRACE = 10.0  # seconds in which a worker that is asked to end removes what it has half written


class Processes:
    """Worker processes, which are started with the work, and end with the block that this is entered for.

    Args:
        count: Processes, >= 1; there are no more than pieces of work.
        make: Makes in a worker what `parts` are here, by the same names. It is sent there, parts are not, since they
            can hold what cannot be sent, such as a lambda, and can be large.
        parts: Of the arguments of what is to be done.

    Raises:
        ProcessError: In the block, if a worker is lost.
    """

    def __init__(self, count: int, make: Callable[[], Parts], parts: Parts):
        self._count, self._parts = count, dict(parts)
        self._names = {id(part): name for name, part in self._parts.items()}
        # A fork would have the locks of this process's threads.
        context = multiprocessing.get_context("spawn")
        with _signals_blocked():  # of multiprocessing's tracker of resources, which a terminal that closes would end
            resource_tracker.ensure_running()
        self._pool = ProcessPoolExecutor(
            count, context, _begin, (pickle.dumps(make), logging.getLogger().getEffectiveLevel())
        )
        self._workers: dict[int | None, BaseProcess] = {}

    def start(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[[], Any]:
        """Have a function called in a worker.

        Returns:
            A function that waits, logs what was logged there, and returns the result or raises the error.
        """
        stream = io.BytesIO()
        _Sender(stream, self._names).dump((work, args, kwargs))
        before = multiprocessing.active_children()
        with Interruption([signal.SIGTERM]), _signals_blocked():  # a worker that is half started tells of that
            future = self._pool.submit(_do, stream.getvalue())
            self._workers |= {p.pid: p for p in multiprocessing.active_children() if p not in before}
        return lambda: _received(future)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self._pool.shutdown()
            return
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._end_workers()
        self._pool.shutdown()
        if isinstance(error, BrokenProcessPool):
            raise ProcessError(
                f"num_processes={self._count}: {self._loss()}; what is finished is in the cache, and the same command "
                "goes on from there"
            ) from error

    def _end_workers(self) -> None:
        for worker in self._workers.values():
            worker.terminate()
        latest = time.monotonic() + _GRACE
        for worker in self._workers.values():
            worker.join(max(0.0, latest - time.monotonic()))
            worker.kill()

    def _loss(self) -> str:
        """Which worker was lost; the others were asked to end thereupon."""
        asked = (-signal.SIGTERM, 128 + signal.SIGTERM)
        ends = [(process.exitcode or 0, pid) for pid, process in self._workers.items()]
        code, pid = next((end for end in ends if end[0] and end[0] not in asked), ends[0])
        if code >= 0 and code not in asked:
            return f"process {pid} ended with status {code}"
        number = -code if code < 0 else signal.SIGTERM
        hint = ", as by the system when memory runs out" if number == signal.SIGKILL else ""
        return f"process {pid} was ended by {signal.Signals(number).name}{hint}"


class _Sender(pickle.Pickler):
    """Sends the names of parts in their place."""

    def __init__(self, stream: io.BytesIO, names: Mapping[int, str]):
        super().__init__(stream)
        self._part_names = names

    def persistent_id(self, obj: Any) -> str | None:
        return self._part_names.get(id(obj))


class _Receiver(pickle.Unpickler):
    def persistent_load(self, pid: str) -> Any:
        return _worker.parts[pid]


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Processes that are started in here never see what a terminal sends to all: the command ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _received(future: Future[bytes]) -> Any:
    content, error, records, trace = pickle.loads(future.result())
    for record in records:
        logging.getLogger(record.name).handle(record)
    if error is not None:
        raise error from WorkerError(trace)
    return pickle.loads(content)


class _Worker:
    """What a worker remembers."""

    make = b""
    _parts: Parts | None = None

    @property
    def parts(self) -> Parts:
        """Made when they are needed first; what that logs, the command has said already."""
        if self._parts is not None:
            return self._parts
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made: Parts = pickle.loads(self.make)()
        finally:
            logging.disable(before)
        self._parts = made
        return made


_worker = _Worker()


def _begin(make: bytes, level: int) -> None:
    """Set a worker up, before it imports what takes long."""
    logging.getLogger().setLevel(level)
    _worker.make = make
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where it could not be blocked
    threading.Thread(target=_end_with_command, daemon=True).start()


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    signal.signal(number, signal.SIG_IGN)  # a second one must not disturb what follows
    raise Interrupted(number)


def _end_with_command() -> None:
    """Whatever ends the command: nobody else would end this process then."""
    command = multiprocessing.parent_process()
    assert command is not None
    command.join()
    os._exit(1)


def _do(content: bytes) -> bytes:
    """Do a piece of work; its result or error, what it logged, and the error's traceback."""
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    handler = logging.handlers.QueueHandler(records)  # type: ignore[arg-type]
    sent, error, trace = b"", None, ""
    try:
        _ = _worker.parts
        work, args, kwargs = _Receiver(io.BytesIO(content)).load()
        logging.getLogger().addHandler(handler)
        signal.signal(signal.SIGTERM, _end)  # before, and after, there is nothing that could be left half written
        sent = _packed(work(*args, **kwargs))
    except Interrupted as stop:
        os._exit(128 + stop.number)  # the pool would send it, and go on with this process
    except Exception as failure:
        trace = "".join(traceback.format_exception(failure))
        error = _as_sent(failure, trace)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        logging.getLogger().removeHandler(handler)
    told = [records.get() for _ in range(records.qsize())]
    return pickle.dumps((sent, error, told, trace))


def _packed(result: Any) -> bytes:
    try:
        return pickle.dumps(result)
    except Exception as error:  # whatever its parts do
        raise ProcessError(f"a result can't be sent to another process ({error}); use num_processes=1") from error


def _as_sent(error: Exception, trace: str) -> Exception:
    """The error, or where it cannot be sent, what its traceback says."""
    try:
        return error if type(pickle.loads(pickle.dumps(error))) is type(error) else WorkerError(trace)
    except Exception:  # whatever its class does
        return WorkerError(trace)
