"""The executor that compiles inner steps."""

from __future__ import annotations

from typing import Any, Literal

from ph_l2o.compilation.compilations import Compilations
from ph_l2o.compilation.steps import ParticleSteps, StepCompiler, StepTape
from ph_l2o.compilation.updates import ParticleUpdates, UpdateCompiler, UpdateTape
from ph_l2o.inner import Executor, Steps, Tape, Window
from ph_l2o.inner.executor import Order


class Compiled(Executor):
    """Compiles inner steps when they are first met, and runs the compiled ones from then on.

    Args:
        part: `step`: inner gradient and update in one function, for each kind of problem; `update`: the optimizer's
            update alone, between inner gradients that are not compiled. An update serves all architectures where the
            optimizer `takes_padding`, unless it is of particles.
    """

    def __init__(self, part: Literal["step", "update"] = "step"):
        self.part = part
        self._known = Compilations()
        self._steps, self._updates = StepCompiler(self._known), UpdateCompiler(self._known)

    @property
    def num_compiled(self) -> int:
        """Functions that have been compiled so far."""
        return len(self._known)

    def tape(self, window: Window, *, order: Order, stepwise: bool = False) -> Tape[Any]:
        if self.part == "step":
            return StepTape(window, self._steps, order, gradient_norms=stepwise)
        return UpdateTape(window, self._updates, order)

    def particles(self, window: Window) -> Steps[Any]:
        return ParticleSteps(window, self._steps) if self.part == "step" else ParticleUpdates(window, self._updates)
