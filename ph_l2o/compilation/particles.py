"""The whole inner step of many particles, compiled: evolution strategies have no backward part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ph_l2o.compilation.graphs import compile_function
from ph_l2o.compilation.kinds import Kinds, Pieces, Step, Structure, drawn_tensors, traced_value_and_gradient
from ph_l2o.estimators.particles import Particles, particle_update
from ph_l2o.inner import Carry, value_and_gradient
from ph_l2o.optimizers.base import LearnedOptimizer
from ph_l2o.tasks.base import Problem

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]


class CompiledParticles:
    """Windows of compiled inner steps, as `ph_l2o.estimators.particles.unroll`.

    Args:
        whole: Compile inner gradient and update as one, or the update alone.
    """

    def __init__(self, *, whole: bool = True) -> None:
        self.kinds: Kinds[Run] = Kinds(_compiled_step if whole else _compiled_update, whole=whole)

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
        *before, at_end = problem.batches(first, count + 1)
        for batch in before:
            if step is None:
                step = self.kinds.of(optimizer, phi, problem, structure, pieces, batch)
            if self.kinds.whole:
                loss, *after = step([*own, *pieces.smooth, *pieces.rest, *held, *drawn_tensors(batch)])
                pieces = Pieces(after[: len(pieces.smooth)], after[len(pieces.smooth) :])
            else:
                carry = structure.together(pieces)
                loss, grads, buffers = value_and_gradient(Particles(problem), carry.params, carry.buffers, batch)
                after = step([*own, *pieces.smooth, grads.flat, loss, *pieces.rest])
                carry = structure.together(Pieces(list(after[: len(pieces.smooth)]), list(after[len(pieces.smooth) :])))
                pieces = structure.apart(Carry(carry.params, carry.state, buffers))
            losses.append(loss)
        carry = structure.together(pieces)
        assert step is not None
        if self.kinds.whole:  # one step too many is faster than the loss alone that is not compiled
            last, *_ = step([*own, *pieces.smooth, *pieces.rest, *held, *drawn_tensors(at_end)])
        else:
            last, _ = Particles(problem).loss(carry.params, carry.buffers, at_end)
        losses.append(last)
        return carry, torch.stack(losses[1:])


def _compiled_step(step: Step, phi: list[Tensor], pieces: Pieces, others: list[Tensor]) -> Run:
    num_phi, num_smooth = len(phi), len(pieces.smooth)

    def function(tensors: list[Tensor]) -> list[Tensor]:
        own = dict(zip(step.names, tensors[:num_phi], strict=True))
        smooth, constants = tensors[num_phi : num_phi + num_smooth], tensors[num_phi + num_smooth :]
        rest, problem, batch = step.given(constants)
        carry, particles = step.structure.together(Pieces(smooth, rest)), Particles(problem)
        loss, slope, buffers = traced_value_and_gradient(particles, carry.params, carry.buffers, batch)
        update = particle_update(step.optimizer, own)
        flat, state = update(carry.params, carry.params.like(slope), loss, carry.state)
        after = step.structure.apart(Carry(carry.params.like(flat), state, buffers))
        return [loss, *after.smooth, *after.rest]

    return compile_function(function, [*(p.detach() for p in phi), *pieces.smooth, *pieces.rest, *others])


def _compiled_update(step: Step, phi: list[Tensor], pieces: Pieces, others: list[Tensor]) -> Run:
    del others
    num_phi, num_smooth = len(phi), len(pieces.smooth)

    def function(tensors: list[Tensor]) -> list[Tensor]:
        own = dict(zip(step.names, tensors[:num_phi], strict=True))
        smooth, (gradient, loss, *rest) = tensors[num_phi : num_phi + num_smooth], tensors[num_phi + num_smooth :]
        carry = step.structure.together(Pieces(smooth, rest))
        update = particle_update(step.optimizer, own)
        flat, state = update(carry.params, carry.params.like(gradient), loss, carry.state)
        after = step.structure.apart(Carry(carry.params.like(flat), state, carry.buffers))
        return [*after.smooth, *after.rest]

    theta = pieces.smooth[0]  # an example of a gradient too
    examples = [*pieces.smooth, theta, theta[..., 0].contiguous(), *pieces.rest]
    return compile_function(function, [*(p.detach() for p in phi), *examples])
