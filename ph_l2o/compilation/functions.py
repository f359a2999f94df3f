"""Functions of tensors, compiled ahead of time with their derivative.

`torch.compile` does not differentiate a compiled function twice, and its calls cost more than an inner step of a small
problem. Here the function and its pullback, each of which may take derivatives inside by `torch.func`, are compiled as
two functions of tensors. What the way forward computes at a cost is kept for the way back, which computes the rest
again. Tensors that a function finds elsewhere (buffers, tables) become inputs.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.func import vjp

from ph_l2o.compilation.dispatch import Recorder, Reduced, Rules
from ph_l2o.compilation.torch_versions import ahead_of_time, check_version
from ph_l2o.errors import CompileError
from ph_l2o.segments import tracing

log = logging.getLogger(__name__)

Tensors = Sequence[Tensor]
Function = Callable[[list[Tensor], list[Tensor]], tuple[list[Tensor], list[Tensor]]]


class Differentiable(NamedTuple):
    """A compiled function with its vector-Jacobian product.

    Attributes:
        forward: Inputs, differentiable ones first → outputs, other outputs, and what the backward part needs.
        backward: What the forward part kept, and cotangents of the outputs → gradients of the differentiable inputs.
    """

    forward: Callable[[Tensors], tuple[Tensors, Tensors, Tensors]]
    backward: Callable[[Tensors, Tensors], Tensors]


class _Step:
    """A function and its pullback, each of flat tensors: inputs, constants, lifted constants, …

    Attributes:
        lifted: Constants that the function finds by itself.
    """

    def __init__(self, function: Function, num_inputs: int, num_given: int):
        self._function, self._num_inputs, self._num_given = function, num_inputs, num_given
        self.lifted: list[Tensor] = []
        self._plan: list[Reduced] | None = None

    def _constants(self, flat: Tensors) -> Iterable[tuple[Tensor, Tensor]]:
        return zip(self.lifted, flat[self._num_given :], strict=False)

    def forward(self, *flat: Tensor) -> tuple[Tensor, ...]:
        """Outputs, other outputs, what is kept. The first call decides what that is."""
        known = list(flat[self._num_inputs : self._num_given])
        with tracing(), Rules(self._constants(flat), self._plan) as rules:
            outputs, others = self._function(list(flat[: self._num_inputs]), known)
        if self._plan is None:
            self._plan = [Reduced(*pytree.tree_map_only(Tensor, lambda _: True, tuple(r))) for r in rules.reduced]
        kept = pytree.tree_leaves([r.kept for r in rules.reduced])
        return (*outputs, *others, *(x for x in kept if x is not None))

    def pullback(self, *flat: Tensor) -> tuple[Tensor, ...]:
        """Gradients, from what is kept and cotangents, which follow the inputs."""
        known, end = list(flat[self._num_inputs : self._num_given]), self._num_given + len(self.lifted)
        rest = iter(flat[end:])

        def again(*inputs: Tensor) -> tuple[Tensor, ...]:
            with Rules(self._constants(flat), self._plan, rest):
                return tuple(self._function(list(inputs), known)[0])

        with tracing(), Rules(self._constants(flat)):
            _, pull = vjp(again, *flat[: self._num_inputs])  # type: ignore[misc]
            return tuple(x.contiguous() for x in pull(tuple(rest)))


def compile_differentiable(
    function: Function, inputs: Tensors, constants: Tensors, *, any_sizes: Mapping[int, int] = MappingProxyType({})
) -> Differentiable:
    """Compile `function(inputs, constants) -> (outputs, others)` and its vector-Jacobian product.

    Args:
        function: Pure, of static shapes; it must not look at values.
        inputs: Examples of what it is differentiated in.
        constants: Examples of its other tensors.
        any_sizes: Sizes in the examples which stand for any sizes, so that one compiled function serves all; each with
            another that it may have instead. They must be unlike all other sizes in the examples.

    Raises:
        CompileError: If it cannot be traced or compiled.
    """
    check_version()
    given = [x.detach() for x in (*inputs, *constants)]
    step = _Step(function, len(inputs), len(given))
    with torch.no_grad():
        with tracing():
            outputs, rest = function(given[: len(inputs)], given[len(inputs) :])  # fills caches of constants
        num_outputs, num_results = len(outputs), len(outputs) + len(rest)
        cotangents = [torch.zeros_like(x) for x in outputs]
        with Recorder([*given, *cotangents]) as recorder:
            kept = step.forward(*given)[num_results:]
            step.pullback(*given, *kept, *cotangents)
        step.lifted = lifted = recorder.constants
        digest, examples, ends = recorder.digest.hexdigest(), [*given, *lifted], [*kept, *cotangents]
        others, other_ends = examples, ends
        if any_sizes:
            others = [_resized(x, any_sizes) for x in examples]
            try:
                other_kept = step.forward(*others)[num_results:]
            except RuntimeError as error:
                raise CompileError(f"cannot be compiled for any sizes ({error})") from error
            other_ends = [*other_kept, *(_resized(x, any_sizes) for x in cotangents)]
        forward = ahead_of_time(step.forward, examples, others, f"{digest} forward")
        backward = ahead_of_time(step.pullback, examples + ends, others + other_ends, f"{digest} pullback")

    def run_forward(arguments: Tensors) -> tuple[Tensors, Tensors, Tensors]:
        everything = [*arguments, *lifted]
        found = forward(*everything)
        return found[:num_outputs], found[num_outputs:num_results], [*everything, *found[num_results:]]

    return Differentiable(run_forward, lambda kept, cotangents: backward(*kept, *cotangents))


def compile_function(function: Callable[[list[Tensor]], list[Tensor]], inputs: Tensors) -> Callable[[Tensors], Tensors]:
    """Compile `function(inputs) -> outputs` without derivative; see `compile_differentiable`."""
    check_version()
    given, lifted = [x.detach() for x in inputs], list[Tensor]()

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
        with tracing(), Rules(zip(lifted, tensors[len(given) :], strict=False)):
            return tuple(function(list(tensors[: len(given)])))

    with torch.no_grad():
        with tracing():
            function(given)
        with Recorder(given) as recorder:
            flat(*given)
        lifted += recorder.constants
        examples = [*given, *lifted]
        compiled = ahead_of_time(flat, examples, examples, recorder.digest.hexdigest())
        return lambda arguments: compiled(*arguments, *lifted)


def _resized(x: Tensor, sizes: Mapping[int, int]) -> Tensor:
    return x.new_zeros([sizes.get(n, n) for n in x.shape])


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    """Say how long a compilation took."""
    began = time.perf_counter()
    yield
    log.info("compiled %s in %.1f s", what, time.perf_counter() - began)
