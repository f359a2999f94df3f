"""Reads numpy arrays out of pickles without running any code they name.

CIFAR-10 and the MNIST wheel hold pickles. Here only plain containers and numeric arrays are
understood: the few names that an array's pickle refers to are answered with stand-ins of our own,
and any other name is refused before it is imported.
"""

import io
import pickle
from typing import Any

import numpy as np

_TYPES = frozenset(["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8"])


def load_arrays(stream: io.BufferedIOBase) -> Any:
    """Reads one pickle made of containers, numbers, text and numeric numpy arrays.

    Text that Python 2 wrote comes back as bytes. Arrays are read-only.

    Args:
        stream: A binary file at the start of the pickle.

    Returns:
        The object.

    Raises:
        pickle.UnpicklingError: The pickle is damaged or names anything else.
    """
    try:
        return _resolve(_ArrayUnpickler(stream, encoding="bytes").load())
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise pickle.UnpicklingError(f"damaged pickle ({type(error).__name__}: {error})") from error


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"refused: the pickle asks for {module}.{name}") from None


class _StoredType:
    """Stands in for `numpy.dtype`; its state is read for the byte order only."""

    def __init__(self, code: str | bytes, align: object = False, copy: object = False) -> None:
        name = _text(code)
        if name not in _TYPES:
            raise pickle.UnpicklingError(f"refused: the pickle holds an array of type {name!r}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(_text(state[1]))  # type: ignore[arg-type]


class _StoredArray:
    """Stands in for `numpy.ndarray`, until its state has come."""

    array: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, stored_type, is_fortran, raw = state
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        self.array = _from_buffer(raw, stored_type, shape, "F" if is_fortran else "C")


def _reconstruct(subtype: object, shape: object, code: object) -> _StoredArray:
    return _StoredArray()


def _from_buffer(raw: bytes, stored_type: _StoredType, shape: tuple[int, ...], order: Any) -> np.ndarray:
    return np.frombuffer(raw, stored_type.dtype).reshape(shape, order=order)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"refused: the pickle holds bytes encoded as {encoding!r}")
    return text.encode("latin1")


def _text(value: str | bytes) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else value


def _resolve(value: Any) -> Any:
    if isinstance(value, _StoredArray):
        return value.array
    if isinstance(value, dict):
        return {key: _resolve(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_resolve(item) for item in value)
    return value


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _StoredArray,
    ("numpy", "dtype"): _StoredType,
    ("_codecs", "encode"): _encode,  # how Python 3 writes bytes for Python 2
}
for _core in ("numpy.core", "numpy._core"):  # before numpy 2, since numpy 2
    _STAND_INS[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _STAND_INS[f"{_core}.numeric", "_frombuffer"] = _from_buffer
