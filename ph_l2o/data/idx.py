"""The IDX format of MNIST: a magic number, big-endian sizes, then the bytes of the array.

The magic number is ``0, 0, 8, ndim``, where 8 stands for unsigned bytes.
"""

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from ph_l2o.errors import DamagedFileError


def read_idx(path: Path, *, ndim: int, md5: str | None = None) -> np.ndarray:
    """Reads an IDX file of unsigned bytes, plain or compressed (``.gz``).

    Args:
        path: The file.
        ndim: Number of dimensions it must have.
        md5: If given, what the uncompressed file must hash to.

    Returns:
        A uint8 array that may be written to.

    Raises:
        DamagedFileError: The file cannot be read or is not what it should be.
    """
    raw = _read_bytes(path)
    header_size = 4 + 4 * ndim
    if len(raw) < header_size:
        raise DamagedFileError(path, f"{len(raw)} bytes are too few for an IDX header of {header_size}")
    magic, *shape = struct.unpack(f">{1 + ndim}I", raw[:header_size])
    if magic != _magic(ndim):
        raise DamagedFileError(path, f"not IDX: magic number {magic:#010x}, expected {_magic(ndim):#010x}")
    expected_size = header_size + math.prod(shape)
    if len(raw) != expected_size:
        sizes = "x".join(str(size) for size in shape)
        raise DamagedFileError(path, f"{len(raw)} bytes, but sizes {sizes} need {expected_size}")
    if md5 is not None and (found := hashlib.md5(raw, usedforsecurity=False).hexdigest()) != md5:
        raise DamagedFileError(path, f"content has md5 {found}, expected {md5}")
    return np.frombuffer(raw, np.uint8, offset=header_size).reshape(shape).copy()


def idx_bytes(array: np.ndarray) -> bytes:
    """Returns the content of the IDX file that holds a uint8 array."""
    if array.dtype != np.uint8:
        raise TypeError(f"array.dtype={array.dtype}: must be uint8")
    header = struct.pack(f">{1 + array.ndim}I", _magic(array.ndim), *array.shape)
    return header + array.tobytes()


def _magic(ndim: int) -> int:
    return 0x0800 | ndim


def _read_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DamagedFileError(path, f"cannot be read ({getattr(error, 'strerror', None) or error})") from error
