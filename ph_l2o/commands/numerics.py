"""Threads, denormal numbers and memory of a process."""

from __future__ import annotations

import ctypes
import os
import sys
import warnings

# Of glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_INT_MAX = 2**31 - 1


def set_up_torch(num_threads: int | None) -> None:
    """Set the number of CPU threads, flush denormal numbers, and let the process keep memory that it frees.

    Denormal numbers are 5 times slower, and mean nothing here.
    """
    import torch

    if num_threads is not None:
        torch.set_num_threads(num_threads)
    # For workers; and without it Lightning would change the number.
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    torch.set_flush_denormal(True)
    keep_freed_memory()
    # NumPy 1.26 notices it the first time that somebody asks for the smallest number.
    warnings.filterwarnings("ignore", "The value of the smallest subnormal", UserWarning)


def keep_freed_memory() -> bool:
    """Let glibc's allocator keep what is freed, and use it again.

    It would give tensors of megabytes back to the system in every inner step; asking for them again costs up to a
    third of the time.

    Returns:
        Whether there is such an allocator.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # a C library other than glibc
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _INT_MAX))
