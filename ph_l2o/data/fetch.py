"""Finds the files of a data set, or fetches them: sources in order, one process at a time."""

import os
import shutil
import tempfile
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ph_l2o.data.download_progress import progress
from ph_l2o.data.images import ImageData
from ph_l2o.data.lock import process_lock
from ph_l2o.errors import DamagedFileError, DataError

Say = Callable[[str], None]

_LOCK_NAME = ".ph_l2o-data.lock"
_TEMPORARY_PREFIX = ".ph_l2o-fetch-"


@dataclass(frozen=True)
class Source:
    """A way to get a data set: ``fetch(folder, say)`` fills an empty folder laid out like the root."""

    name: str
    fetch: Callable[[Path, Say], None]


@dataclass(frozen=True)
class Dataset:
    """Where a data set lies, how it is read and checked, and where it comes from.

    Attributes:
        name: The name users give.
        folder: Its folder below the data root.
        files: Names of the files that must be in it.
        suffixes: What may follow each name.
        extra_files: Files that other programs want; kept if a source brings them.
        read: Reads and checks the files in a folder.
        sources: Tried in this order when a file is missing.
    """

    name: str
    folder: str
    files: tuple[str, ...]
    suffixes: tuple[str, ...]
    read: Callable[[Path], ImageData]
    sources: tuple[Source, ...]
    extra_files: tuple[str, ...] = ()

    def missing_files(self, root: Path) -> list[str]:
        folder = root / self.folder
        return [name for name in self.files if not any((folder / (name + end)).exists() for end in self.suffixes)]


def read_or_fetch(dataset: Dataset, root: Path, *, download: bool) -> ImageData:
    """Reads a data set below the root; missing files are fetched first, those there are kept.

    Args:
        dataset: The data set.
        root: The data root.
        download: Whether missing files may be fetched.

    Returns:
        The checked images and labels.

    Raises:
        DataError: A file is damaged, no source worked, or the root cannot be written.
    """
    try:
        missing = dataset.missing_files(root)
        if missing and not download:
            raise _nothing_worked(dataset, root, missing, ["downloads: not allowed (download=False)"])
        if missing:
            _fetch_locked(dataset, root)
    except OSError as error:
        raise DataError(
            f"{root}: cannot write the data set {dataset.name} there ({error}); "
            "make the folder writable or choose another data root"
        ) from error
    return dataset.read(root / dataset.folder)


def _fetch_locked(dataset: Dataset, root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    with progress() as say:

        def on_wait() -> None:
            say(f"{dataset.name}: waiting for another process that fetches data into {root}")

        with process_lock(root / _LOCK_NAME, on_wait=on_wait):
            for leftover in root.glob(_TEMPORARY_PREFIX + "*"):  # of a killed process: we hold the lock
                shutil.rmtree(leftover, ignore_errors=True)
            missing = dataset.missing_files(root)
            if missing:  # else another process was faster
                _try_sources(dataset, root, missing, say)


def _try_sources(dataset: Dataset, root: Path, missing: list[str], say: Say) -> None:
    failures = []
    for source in dataset.sources:
        with tempfile.TemporaryDirectory(prefix=_TEMPORARY_PREFIX, dir=root) as name:
            folder = Path(name)
            try:
                source.fetch(folder, say)
                say(f"{dataset.name}: checking what came from {source.name}")
                dataset.read(folder / dataset.folder)
            except Exception as error:  # whatever a source raises, the next one may work
                reason = _one_line(error)
                say(f"{dataset.name}: {source.name} failed ({textwrap.shorten(reason, 60, placeholder=' …')})")
                failures.append(f"{source.name}: {reason}")
                continue
            _place(folder / dataset.folder, root / dataset.folder, [*missing, *dataset.extra_files])
        say(f"{dataset.name}: ready in {root / dataset.folder}")
        return
    raise _nothing_worked(dataset, root, missing, failures)


def _place(fetched: Path, folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (fetched / name).exists() and not (folder / name).exists():
            os.replace(fetched / name, folder / name)


def _nothing_worked(dataset: Dataset, root: Path, missing: list[str], failures: list[str]) -> DataError:
    folder = root / dataset.folder
    compressed = ", plain or .gz," if ".gz" in dataset.suffixes else ""
    tried = [f"files already there: {', '.join(missing)} missing in {folder}", *failures]
    remedy = f"Place the files {', '.join(dataset.files)}{compressed} in {folder} and run again."
    return DataError("\n  - ".join([f"the data set {dataset.name} could not be had; tried:", *tried]) + "\n" + remedy)


def _one_line(error: Exception) -> str:
    if isinstance(error, DamagedFileError):
        return f"{error.path.name}: {error.problem}"
    text = " ".join(str(error).split())
    return text if isinstance(error, DataError) else f"{type(error).__name__}: {text}"
