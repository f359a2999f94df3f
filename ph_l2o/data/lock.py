"""A lock between processes: a file that one of them holds locked."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_POLL_SECONDS = 0.1

if sys.platform == "win32":
    import msvcrt

    def _lock_now(descriptor: int) -> None:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(*error.args) from error
else:
    import fcntl

    def _lock_now(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def process_lock(path: Path, *, on_wait: Callable[[], None]) -> Iterator[None]:
    """Holds the lock in the body; the system frees it should the process die.

    Args:
        path: The lock file; it is made, and removed at the end.
        on_wait: Called once if another process holds the lock.

    Raises:
        OSError: The lock file cannot be made or locked.
    """
    descriptor = _acquire(path, on_wait)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows does not remove open files
            path.unlink()
        os.close(descriptor)


def _acquire(path: Path, on_wait: Callable[[], None]) -> int:
    has_waited = False
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock_now(descriptor)
            if _is_file_at(path, descriptor):
                return descriptor
            os.close(descriptor)  # the last holder has removed the file: lock the new one
            continue
        except BlockingIOError:
            os.close(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        if not has_waited:
            on_wait()
        has_waited = True
        time.sleep(_POLL_SECONDS)


def _is_file_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
