"""Compiled inner steps."""

from ph_l2o.compilation.graphs import CompileError
from ph_l2o.compilation.modes import checked, choose
from ph_l2o.compilation.particles import CompiledParticles
from ph_l2o.compilation.steps import CompiledSteps

__all__ = ["CompileError", "CompiledParticles", "CompiledSteps", "checked", "choose"]
