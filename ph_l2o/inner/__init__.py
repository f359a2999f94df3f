"""The inner loop, without any knowledge of a particular task or optimizer."""

from ph_l2o.inner.carry import Carry, start
from ph_l2o.inner.eager import EAGER, Eager
from ph_l2o.inner.executor import Executor, Steps, Tape
from ph_l2o.inner.loop import final_loss, inner_step, run, unroll, value_and_gradient
from ph_l2o.inner.window import Objective, Window

__all__ = [
    "EAGER",
    "Carry",
    "Eager",
    "Executor",
    "Objective",
    "Steps",
    "Tape",
    "Window",
    "final_loss",
    "inner_step",
    "run",
    "start",
    "unroll",
    "value_and_gradient",
]
