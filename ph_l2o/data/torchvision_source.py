"""torchvision's own downloads, quiet and with a time limit on each silence of the network."""

import contextlib
import io
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

_CLASSES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10"}
_NETWORK_TIMEOUT = 10.0  # seconds


def download_with_torchvision(name: str, root: Path, say: Callable[[str], None]) -> None:
    """Downloads a data set into a folder, in torchvision's layout; torchvision checks the md5 sums.

    Args:
        name: One of the data sets.
        root: torchvision's root folder.
        say: Is told each stage.

    Raises:
        Exception: Whatever torchvision raises when it has no network.
    """
    from torchvision import datasets

    say(f"{name}: downloading with torchvision {_CLASSES[name]}")
    with _network_timeout(_NETWORK_TIMEOUT), _no_output():
        getattr(datasets, _CLASSES[name])(str(root), download=True)


@contextlib.contextmanager
def _network_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def _no_output() -> Iterator[None]:
    sink = io.StringIO()
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
