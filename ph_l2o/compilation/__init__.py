"""Compiled inner steps."""

from ph_l2o.compilation.modes import checked, choose
from ph_l2o.compilation.particles import CompiledParticles, CompiledParticleUpdates
from ph_l2o.compilation.steps import CompiledSteps
from ph_l2o.compilation.updates import CompiledUpdates

__all__ = [
    "CompiledParticleUpdates",
    "CompiledParticles",
    "CompiledSteps",
    "CompiledUpdates",
    "checked",
    "choose",
]
