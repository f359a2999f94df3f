"""What surrounds a drop-in's step: settings of torch that are for the user's model, and torch.compile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_UNTRACED = set[type]()


@contextmanager
def settings_of_our_own(*devices: str) -> Iterator[None]:
    """No gradients, no autocast on the CPU and these kinds of devices; float32 and the CPU as defaults."""
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for kind in {"cpu", *devices}:
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if (dtype := torch.get_default_dtype()) != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        yield


@contextmanager
def construction() -> Iterator[None]:
    """The same, and torch's generator stays as it was: modules draw weights, and are given others."""
    with settings_of_our_own(), torch.random.fork_rng(devices=[]):
        yield


def leave_untraced(optimizer: type[torch.optim.Optimizer]) -> None:
    """Make torch.compile leave a class's `step` as it is, as it does with the other methods of torch.optim.

    A step waits for numbers of each tensor, which no graph holds.
    """
    if optimizer not in _UNTRACED:  # late, as torch.compiler takes seconds to import
        optimizer.step = torch.compiler.disable(optimizer.step)  # type: ignore[method-assign]
        _UNTRACED.add(optimizer)
