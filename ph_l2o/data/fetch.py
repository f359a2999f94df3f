"""Fetches the missing files of a data set: sources in order, one process at a time, nothing half-written."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ph_l2o.errors import DamagedFileError, DataError

Fetch = Callable[[Path], None]

_LOCK_NAME = ".ph_l2o-data.lock"
_TEMPORARY_PREFIX = ".ph_l2o-fetch-"
_logger = logging.getLogger(__name__)


def fetch_missing(
    name: str, files: Sequence[str], sources: Mapping[str, Fetch], root: Path, *, check: Callable[[Path], object]
) -> None:
    """Fetches the files that are missing below the root; those that are there stay as they are.

    Args:
        name: Of the data set.
        files: Paths below the root.
        sources: Functions that fill a folder laid out like the root, tried in this order. Files of these names with
            `.gz` behind them that are below the root already are in the folder at the start.
        root: The data root.
        check: Raises if what lies in such a folder is damaged.

    Raises:
        DataError: No source worked, or the root cannot be written.
    """
    failures = [] if sources else ["downloads are not allowed"]
    try:
        if sources and _missing(files, root):
            root.mkdir(parents=True, exist_ok=True)
            with _only_process(root):
                if _missing(files, root):  # else another process was faster
                    failures = _try_sources(name, files, sources, root, check)
    except OSError as error:
        raise DataError(
            f"{root}: cannot write the data set {name} there ({error}); "
            "make the folder writable or choose another data root"
        ) from error
    if missing := _missing(files, root):
        raise DataError(
            f"data set {name}: {', '.join(Path(file).name for file in missing)} missing in "
            f"{(root / missing[0]).parent} ({'; '.join(failures)}); put good copies there and run again"
        )


def _missing(files: Sequence[str], root: Path) -> list[str]:
    return [file for file in files if not (root / file).exists()]


def _try_sources(
    name: str, files: Sequence[str], sources: Mapping[str, Fetch], root: Path, check: Callable[[Path], object]
) -> list[str]:
    """Takes what is missing from the first source that works; returns why those before it did not."""
    failures: list[str] = []
    for source, fetch in sources.items():
        _logger.info("%s: trying %s", name, source)
        with tempfile.TemporaryDirectory(prefix=_TEMPORARY_PREFIX, dir=root) as temporary:
            folder = Path(temporary)
            for packed in (f"{file}.gz" for file in files if (root / f"{file}.gz").exists()):
                (folder / packed).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(root / packed, folder / packed)
            try:
                fetch(folder)
                check(folder)
            except Exception as error:  # whatever a source raises, the next one may work
                failures.append(f"{source}: {_one_line(error)}")
                _logger.info("%s: failed, %s", name, failures[-1])
                continue
            for file in _missing(files, root):
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                os.replace(folder / file, root / file)
        _logger.info("%s: ready in %s", name, root)
        break
    return failures


@contextlib.contextmanager
def _only_process(root: Path) -> Iterator[None]:
    """Holds a lock that the system frees should the process die, and removes what such a process has left."""
    from filelock import FileLock, Timeout

    lock = FileLock(root / _LOCK_NAME)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _logger.info("waiting for another process that fetches data into %s", root)
        lock.acquire()
    try:
        for leftover in root.glob(_TEMPORARY_PREFIX + "*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield
    finally:
        lock.release()


def _one_line(error: Exception) -> str:
    if isinstance(error, DamagedFileError):
        return f"{error.path.name}: {error.problem}"
    text = " ".join(str(error).split())
    return text if isinstance(error, DataError) else f"{type(error).__name__}: {text}"
