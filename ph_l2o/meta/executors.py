"""Which executor runs the windows of a meta-training: what `compile=` says, or less where that cannot be."""

from __future__ import annotations

import logging

from ph_l2o.compilation import Compiled, Mode, checked, choose
from ph_l2o.errors import CompileError
from ph_l2o.estimators import Estimate, Estimator
from ph_l2o.inner import EAGER, Executor, Window

log = logging.getLogger(__name__)


class ExecutorChoice:
    """Chooses an executor for the first window, and a lesser one if it turns out that this one cannot run it.

    Args:
        mode: `step` or `update`, which then must be possible; `auto`; False.
        estimator: The estimator.
        inner_steps: Inner steps of the whole run, for `auto`.
        architectures: How many the run's problems have, for `auto`.

    Attributes:
        executor: What runs the windows; None before the first.

    Raises:
        ValueError: If there is no such mode.
        CompileError: If compilation is asked for, and the estimator has no compiled form.
    """

    def __init__(self, mode: str | bool, estimator: Estimator, *, inner_steps: int, architectures: int):
        self._mode: Mode = checked(mode)
        self._estimator = estimator
        self._inner_steps, self._architectures = inner_steps, architectures
        self.executor: Executor | None = None
        if mode in ("update", "step") and not estimator.has_compiled_form:
            name = type(estimator).__name__.lower()
            raise CompileError(f"compile={mode}: estimator={name} has no compiled form; use compile=false")

    def estimate(self, window: Window) -> Estimate:
        """The estimate of a window.

        Raises:
            CompileError: If it cannot be compiled as asked for.
        """
        if self.executor is None:
            self.executor = self._first(window)
        while True:
            try:
                return self._estimator(window, self.executor)
            except CompileError as error:
                self.executor = self._lesser(self.executor, error)

    def _first(self, window: Window) -> Executor:
        if self._mode is False:
            return EAGER
        if self._mode != "auto":
            return Compiled(self._mode)
        why = None
        if not self._estimator.has_compiled_form:
            why = f"estimator={type(self._estimator).__name__.lower()} has no compiled form"
        elif not window.optimizer.compiles_well:
            why = f"{type(window.optimizer).__name__} is slower compiled"
        if why is not None:
            log.info("compile=auto: inner steps are not compiled: %s", why)
            return EAGER
        coordinates = window.problem.num_problems * window.problem.params.layout.numel
        part = choose(inner_steps=self._inner_steps, coordinates=coordinates, architectures=self._architectures)
        return Compiled(part) if part else EAGER

    def _lesser(self, executor: Executor, error: CompileError) -> Executor:
        """After a step that cannot be compiled: another try by `auto`, else the error for the user."""
        whole = isinstance(executor, Compiled) and executor.part == "step"
        if self._mode != "auto":
            what, other = ("inner step", "update or compile=false") if whole else ("optimizer's update", "false")
            raise CompileError(f"compile={self._mode}: the {what} {error}; use compile={other}") from error
        if whole:
            log.warning("compile=auto: the inner step %s; the optimizer's update is compiled alone", error)
            return Compiled("update")
        if executor is EAGER:
            raise error
        log.warning("compile=auto: the optimizer's update %s; nothing is compiled", error)
        return EAGER
