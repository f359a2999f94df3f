import os
from pathlib import Path

import pytest
import torch

from ph_l2o.data import load_images

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """A data root with the real MNIST, fetched once and shared by all tests."""
    default = Path(__file__).parents[1] / "data"
    root = Path(os.environ.get("PH_L2O_DATA", default)).resolve()
    load_images("mnist", root)
    return root
