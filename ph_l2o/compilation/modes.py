"""Which part of the inner loop is compiled: `compile=auto|update|step|false`."""

from __future__ import annotations

import logging
from typing import Any, Literal

Mode = Literal["auto", "update", "step", False]

log = logging.getLogger(__name__)

# Compiling a step takes 15 to 30 s the first time. An eager inner step of second order takes about 3 ms, and 1 ms more
# for each 5,000 coordinates over all problems; compiling saves about three quarters of it.
_MILLISECONDS_WORTH_IT = 50_000.0


def checked(mode: Any) -> Mode:
    """The mode, if there is one of that name.

    Raises:
        ValueError: If there is none.
    """
    if mode is not False and mode not in ("auto", "update", "step"):
        raise ValueError(
            f"compile={mode}: must be auto, step (the whole inner step, compiled), update (the optimizer's update "
            "alone) or false"
        )
    return mode


def choose(*, inner_steps: int, coordinates: int, architectures: int = 1) -> Literal["step", "update", False]:
    """What `compile=auto` compiles: the step, the update alone, or nothing.

    By the settings alone, not by a measurement, so that a resumed run computes what the uninterrupted one does.

    Args:
        inner_steps: Inner steps of the whole run.
        coordinates: Coordinates of all problems of a batch.
        architectures: How many architectures the problems have.
    """
    predicted = inner_steps * (3 + coordinates / 5_000)
    found: Literal["step", "update", False] = "step"
    if predicted < _MILLISECONDS_WORTH_IT * architectures:
        found = "update" if predicted >= _MILLISECONDS_WORTH_IT else False
    what = {
        "step": "compiled whole, each architecture the first time that it is met",
        "update": "compiled in part, the optimizer's update for all architectures; the first outer step takes longer",
        False: "not compiled",
    }
    log.info(
        "compile=auto: inner steps are %s (%d of them on %d coordinates, %d architecture%s)",
        what[found], inner_steps, coordinates, architectures, "" if architectures == 1 else "s",
    )  # fmt: skip
    return found
