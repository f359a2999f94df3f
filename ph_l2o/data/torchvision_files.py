"""torchvision's downloads, with a time limit on each silence of the network; the check of a file."""

from __future__ import annotations

import contextlib
import io
import socket
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from ph_l2o.errors import DamagedFileError

_NETWORK_TIMEOUT = 10.0  # seconds
_MOST_BYTES = 2**30


def download(class_name: str, folder: Path) -> None:
    """Downloads a data set of `torchvision.datasets`, which checks the md5 sums, into a folder."""
    from torchvision import datasets

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_TIMEOUT)
    try:
        with contextlib.nullcontext() if sys.stderr and sys.stderr.isatty() else quiet():  # a person sees its progress
            getattr(datasets, class_name)(str(folder), download=True)
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides what is printed, and warnings, such as numpy's about files that its older versions wrote."""
    sink = io.StringIO()
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def check_readable(path: Path) -> None:
    """Looks at a file without opening it: a pipe or a device would be read for ever.

    Raises:
        DamagedFileError: If it is no regular file, or larger than any of a data set's.
    """
    if not path.is_file():
        raise DamagedFileError(path, "cannot be read, it is a folder, a pipe or a device")
    if path.stat().st_size > _MOST_BYTES:
        raise DamagedFileError(path, f"has {path.stat().st_size} bytes, no file of the data set has more than 2³⁰")


def check_md5(path: Path, expected: str) -> None:
    """Compares the md5 of a file.

    Raises:
        DamagedFileError: If it is another one, or if the file cannot be read.
    """
    from torchvision.datasets.utils import calculate_md5

    check_readable(path)
    try:
        found = calculate_md5(path)
    except OSError as error:
        raise DamagedFileError(path, f"cannot be read ({error.strerror})") from error
    if found != expected:
        raise DamagedFileError(path, f"content has md5 {found}, expected {expected}")
