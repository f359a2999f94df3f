"""The whole inner step of many particles, compiled: evolution strategies have no backward part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.func import grad

from ph_l2o.compilation.graphs import compile_function
from ph_l2o.compilation.kinds import Kinds, Pieces, Step, Structure, drawn_tensors
from ph_l2o.estimators.particles import Particles, particle_update
from ph_l2o.inner import Carry
from ph_l2o.optimizers.base import LearnedOptimizer
from ph_l2o.tasks.base import Problem

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]


class CompiledParticles:
    """Windows of compiled inner steps, as `ph_l2o.estimators.particles.unroll`."""

    def __init__(self) -> None:
        self.kinds: Kinds[Run] = Kinds(_compiled)

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
            drawn = drawn_tensors(batch)
            if step is None:
                step = self.kinds.of(optimizer, phi, problem, structure, pieces, batch)
            loss, *after = step([*own, *pieces.smooth, *pieces.rest, *held, *drawn])
            losses.append(loss)
            pieces = Pieces(after[: len(pieces.smooth)], after[len(pieces.smooth) :])
        carry = structure.together(pieces)
        losses.append(Particles(problem).loss(carry.params, carry.buffers, at_end)[0])
        return carry, torch.stack(losses[1:])


def _compiled(step: Step, phi: list[Tensor], pieces: Pieces, others: list[Tensor]) -> Run:
    num_phi, num_smooth = len(phi), len(pieces.smooth)

    def function(tensors: list[Tensor]) -> list[Tensor]:
        own = dict(zip(step.names, tensors[:num_phi], strict=True))
        smooth, constants = tensors[num_phi : num_phi + num_smooth], tensors[num_phi + num_smooth :]
        rest, problem, batch = step.given(constants)
        carry, particles = step.structure.together(Pieces(smooth, rest)), Particles(problem)

        def total(flat: Tensor) -> tuple[Tensor, tuple[Tensor, dict[str, Tensor]]]:
            loss, buffers = particles.loss(carry.params.like(flat), carry.buffers, batch)
            return loss.sum(), (loss, dict(buffers))

        slope, (loss, buffers) = grad(total, has_aux=True)(carry.params.flat)
        update = particle_update(step.optimizer, own)
        flat, state = update(carry.params, carry.params.like(slope), loss, carry.state)
        after = step.structure.apart(Carry(carry.params.like(flat), state, buffers))
        return [loss, *after.smooth, *after.rest]

    return compile_function(function, [p.detach() for p in phi] + [*pieces.smooth, *pieces.rest, *others])
