import pytest
import torch


@pytest.fixture
def float64():
    """float64 where nothing else is said."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
