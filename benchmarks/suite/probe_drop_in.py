"""Peak of the resident set over a few steps of an optimizer, beyond parameters and gradients, in a fresh process."""

from __future__ import annotations

import gc
import json
import resource
import sys
from pathlib import Path

import torch

from suite import drop_in, fresh

_UNIT = 1 if sys.platform == "darwin" else 2**10  # bytes in a unit of ru_maxrss


def main() -> None:
    """Answer with the peak and with what lies in the optimizer's state, in buffers of the parameters' size."""
    question = fresh.question()
    torch.set_num_threads(1)
    name, count, size = question["name"], question["count"], question["size"]
    drop_in.taking_steps(name, drop_in.matrices(2, 10))  # what is loaded at the first use
    gc.collect()
    params = drop_in.parameters(drop_in.matrices(count, size))
    optimizer = drop_in.optimizer(name, params)
    before = _resident()
    for _ in range(3):
        optimizer.step()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT
    buffer = sum(p.numel() * p.element_size() for p in params)
    tensors = [x for memory in optimizer.state.values() for x in memory.values() if isinstance(x, torch.Tensor)]
    state = sum(x.numel() * x.element_size() for x in tensors)
    print(json.dumps({"peak": (after - before) / buffer, "state": state / buffer}))


def _resident() -> int:
    """Bytes of the resident set now; the peak so far where that is not to be had."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT


if __name__ == "__main__":
    main()
