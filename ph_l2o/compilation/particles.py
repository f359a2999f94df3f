"""The inner step of many particles, compiled: evolution strategies have no backward part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ph_l2o.compilation.graphs import compile_function
from ph_l2o.compilation.kinds import Pieces, Step, StepKinds, Structure, drawn_tensors, traced_value_and_gradient
from ph_l2o.compilation.padding import Example, Plain, UpdateKinds
from ph_l2o.estimators.particles import Particles, particle_update
from ph_l2o.inner import Carry, value_and_gradient
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.tasks.task import Problem

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]


class CompiledParticles:
    """Windows of compiled inner steps, as `ph_l2o.estimators.particles.unroll`."""

    whole: ClassVar[bool] = True

    def __init__(self) -> None:
        self.kinds: StepKinds[Run] = StepKinds(_compiled)

    @torch.no_grad()
    def unroll(
        self,
        optimizer: LearnedOptimizer,
        phi: Mapping[str, Tensor],
        problem: Problem,
        carry: Carry,
        first: int,
        count: int,
    ) -> tuple[Carry, Tensor]:
        """See `ph_l2o.estimators.particles.unroll`.

        Raises:
            CompileError: If the step cannot be compiled.
        """
        carry = carry.detach()
        structure, held = Structure(carry), self.kinds.closure(problem).tensors
        pieces, own = structure.apart(carry), [p.detach() for p in phi.values()]
        step: Run | None = None
        losses: list[Tensor] = []
        for k, batch in enumerate(problem.batches(first, count + 1)):
            drawn = drawn_tensors(batch)
            if step is None:
                step = self.kinds.of(optimizer, phi, problem, structure, pieces, batch)
            loss, *after = step([*own, *pieces.smooth, *pieces.rest, *held, *drawn])
            losses.append(loss)
            if k < count:  # the last step is for its loss alone, which takes longer if it is not compiled
                pieces = Pieces(after[: len(pieces.smooth)], after[len(pieces.smooth) :])
        return structure.together(pieces), torch.stack(losses[1:])


class CompiledParticleUpdates:
    """The same with inner gradients that are not compiled, and an update for each architecture.

    One for all needs symbols for sizes, and under vmap, by which particles run, tracing makes numbers of them.
    """

    whole: ClassVar[bool] = False

    def __init__(self) -> None:
        self.kinds: UpdateKinds[Run] = UpdateKinds(_compiled_update)

    @torch.no_grad()
    def unroll(
        self,
        optimizer: LearnedOptimizer,
        phi: Mapping[str, Tensor],
        problem: Problem,
        carry: Carry,
        first: int,
        count: int,
    ) -> tuple[Carry, Tensor]:
        """See `CompiledParticles.unroll`."""
        own, carry = [p.detach() for p in phi.values()], carry.detach()
        rows, buffers = Plain(carry.params.layout), carry.buffers
        carry = rows.spread(carry)
        structure, particles = Structure(carry), Particles(problem)
        pieces = structure.apart(carry)
        update = self.kinds.of(optimizer, phi, rows, structure, pieces)
        losses: list[Tensor] = []
        *before, at_end = problem.batches(first, count + 1)
        for batch in before:
            loss, grads, buffers = value_and_gradient(particles, carry.params.like(pieces.smooth[0]), buffers, batch)
            losses.append(loss)
            after = update([*own, *pieces.smooth, grads.flat, loss, *pieces.rest])
            pieces = Pieces(list(after[: len(pieces.smooth)]), list(after[len(pieces.smooth) :]))
        carry = rows.gather(structure.together(pieces), buffers)
        losses.append(particles.loss(carry.params, carry.buffers, at_end)[0])
        return carry, torch.stack(losses[1:])


def _compiled(step: Step, phi: Mapping[str, Tensor], pieces: Pieces, others: list[Tensor]) -> Run:
    num_phi, num_smooth = len(phi), len(pieces.smooth)

    def function(tensors: list[Tensor]) -> list[Tensor]:
        own = dict(zip(phi, tensors[:num_phi], strict=True))
        smooth, constants = tensors[num_phi : num_phi + num_smooth], tensors[num_phi + num_smooth :]
        rest, problem, batch = step.given(constants)
        carry, particles = step.structure.together(Pieces(smooth, rest)), Particles(problem)
        loss, slope, buffers = traced_value_and_gradient(particles, carry.params, carry.buffers, batch)
        update = particle_update(step.optimizer, own)
        flat, state = update(carry.params, carry.params.like(slope), loss, carry.state)
        after = step.structure.apart(Carry(carry.params.like(flat), state, buffers))
        return [loss, *after.smooth, *after.rest]

    return compile_function(function, [*(p.detach() for p in phi.values()), *pieces.smooth, *pieces.rest, *others])


def _compiled_update(optimizer: LearnedOptimizer, phi: Mapping[str, Tensor], example: Example) -> Run:
    structure, num_phi, num_smooth = example.structure, len(phi), len(example.pieces.smooth)

    def function(tensors: list[Tensor]) -> list[Tensor]:
        own = dict(zip(phi, tensors[:num_phi], strict=True))
        smooth, (gradient, loss, *rest) = tensors[num_phi : num_phi + num_smooth], tensors[num_phi + num_smooth :]
        carry = structure.together(Pieces(smooth, rest))
        flat, state = particle_update(optimizer, own)(carry.params, carry.params.like(gradient), loss, carry.state)
        after = structure.apart(Carry(carry.params.like(flat), state, {}))
        return [*after.smooth, *after.rest]

    theta = example.pieces.smooth[0]  # an example of a gradient too
    examples = [*example.pieces.smooth, theta, theta[..., 0].contiguous(), *example.pieces.rest]
    return compile_function(function, [*(p.detach() for p in phi.values()), *examples])
