"""Compiled inner steps."""

from ph_l2o.compilation.compiled import Compiled
from ph_l2o.compilation.modes import Mode, checked, choose

__all__ = ["Compiled", "Mode", "checked", "choose"]
