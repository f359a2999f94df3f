"""Which part of the inner loop is compiled: `compile=auto|update|step|false`."""

from __future__ import annotations

import logging

from ph_l2o.errors import CompileError
from ph_l2o.estimators.estimator import Estimator

log = logging.getLogger(__name__)

# Compiling a step takes 15 to 30 s the first time. An eager inner step of second order takes about 3 ms, and 1 ms more
# for each 5,000 coordinates over all problems; compiling saves about three quarters of it.
_MILLISECONDS_WORTH_IT = 100_000.0


def checked(mode: object) -> str | bool:
    """The mode, if there is one of that name.

    Raises:
        ValueError: If there is none.
    """
    if mode is not False and mode not in ("auto", "update", "step"):
        raise ValueError(
            f"compile={mode}: must be auto, step (the whole inner step, compiled), update (the optimizer's update "
            "alone) or false"
        )
    assert isinstance(mode, str | bool)
    return mode


def choose(
    mode: str | bool, estimator: Estimator, *, inner_steps: int, coordinates: int, architectures: int = 1
) -> str | bool:
    """What to compile: `step`, `update` or False.

    Args:
        mode: `auto`, `update`, `step` or False.
        estimator: The estimator; not all have a compiled form.
        inner_steps: Inner steps of the whole run.
        coordinates: Coordinates of all problems of a batch.
        architectures: How many architectures the problems have.

    Raises:
        CompileError: If compilation is asked for, and the estimator has no compiled form.
    """
    if mode in ("update", "step") and not estimator.has_compiled_form:
        raise CompileError(
            f"compile={mode}: estimator={type(estimator).__name__.lower()} has no compiled form; use compile=false"
        )
    if mode != "auto":
        return mode
    # By the settings alone, not by a measurement, so that a resumed run computes what the uninterrupted one does.
    predicted = inner_steps * (3 + coordinates / 5_000)
    worth_it = estimator.has_compiled_form and predicted >= _MILLISECONDS_WORTH_IT
    found = "step" if predicted >= _MILLISECONDS_WORTH_IT * architectures else "update"
    what = {
        "step": "compiled whole, each architecture the first time that it is met",
        "update": "compiled in part, the optimizer's update for all architectures; the first outer step takes longer",
    }
    log.info(
        "compile=auto: inner steps are %s (%d of them on %d coordinates, %d architecture%s)",
        what[found] if worth_it else "not compiled", inner_steps, coordinates, architectures,
        "" if architectures == 1 else "s",
    )  # fmt: skip
    return found if worth_it else False
