"""Threads and denormal numbers."""

from __future__ import annotations

import warnings


def set_up_torch(num_threads: int | None) -> None:
    """Set the number of CPU threads, and flush denormal numbers: they are 5 times slower, and mean nothing here."""
    import torch

    if num_threads is not None:
        torch.set_num_threads(num_threads)
    torch.set_flush_denormal(True)
    # NumPy 1.26 notices it the first time that somebody asks for the smallest number.
    warnings.filterwarnings("ignore", "The value of the smallest subnormal", UserWarning)
