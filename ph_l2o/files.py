"""Files that are either the old or the new ones, never half of them; JSON, CSV; the revision of the code."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

_HALF = ".half_written"


def write_atomically(path: str | Path, content: str | bytes) -> Path:
    """Write a temporary file in the same folder, bring it to the disk, then put it in place of `path`.

    Raises:
        OSError: Naming `path`, if it cannot be written, as on a full disk; what was there is left as it was.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(_HALF, f".{path.name}.", path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                bring_to_disk(file)
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    return path


def without_folders(value: Any) -> Any:
    """Plain values with the last part of each absolute path: so that what is kept tells of no folders."""
    if isinstance(value, Mapping):
        return {k: without_folders(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(v) for v in value]
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value


def remove_half_written(folder: Path) -> None:
    """Remove what a killed process left beside the files that it was about to replace; nobody else may write there."""
    for place in (folder, folder / "checkpoints"):
        for path in place.glob(f".*{_HALF}"):
            path.unlink(missing_ok=True)


def bring_to_disk(file: IO[Any]) -> None:
    """Flush an open file as far as the disk, so that a crash of the machine leaves what was written."""
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an OSError the name of the file that is being written; the system's own has none on a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def short_revision(revision: str) -> str:
    """Nine digits of a commit, and `-dirty` if it has that; several, with commas between them, are each shortened.

    >>> short_revision("0123456789abcdef-dirty, fedcba9876543210")
    '012345678-dirty, fedcba987'
    """
    parts = [one.partition("-") for one in revision.split(", ")]
    return ", ".join(f"{commit[:9]}{dash}{dirty}" for commit, dash, dirty in parts)


def git_revision() -> str | None:
    """The commit that the working folder is at, with `-dirty` where it is changed; None outside of git."""
    try:
        call = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(call, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def json_text(value: Any) -> str:
    """JSON, which has no infinity: it is the string "inf" or "-inf", and nan is null."""
    return json.dumps(_json_value(value), indent=1, allow_nan=False, default=str) + "\n"


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """CSV with a header; columns in the order in which rows name them, empty where a row lacks one."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _json_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _json_value(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
