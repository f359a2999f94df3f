import os
import signal
from pathlib import Path

import pytest
import torch

from ph_l2o.data import load_images

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def signals_are_not_ignored():
    """As under nohup, or in a script's background: there they are, and so runs that are to be stopped would go on."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """A data root with the real MNIST, fetched once and shared by all tests."""
    default = Path(__file__).parents[1] / "data"
    root = Path(os.environ.get("PH_L2O_DATA", default)).resolve()
    load_images("mnist", root)
    return root
