"""The inner loop, without any knowledge of a particular task or optimizer."""

from ph_l2o.inner.loop import Carry, final_loss, inner_step, run, start, value_and_gradient
from ph_l2o.inner.window import Objective, Window

__all__ = ["Carry", "Objective", "Window", "final_loss", "inner_step", "run", "start", "value_and_gradient"]
