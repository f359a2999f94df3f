"""The bases in which `PortHamiltonianKronecker` steps: which there are, when they are renewed, what turns with them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ph_l2o.optimizers.eigenbases import Eigenbases, eigenbases, where_rows
from ph_l2o.params import Layout
from ph_l2o.port_hamiltonian.energy import LEAST, averaging_weight

_DECAY = 0.95  # of L and R
_LONGEST_VECTOR = 128  # that is rotated
_MOST = 1e30  # of a gradient's entries, so that sums of them do not overflow
_EARLY = (1, 2, 4, 7)  # steps after which bases are renewed besides


def bases_of(layout: Layout, longest: int) -> Eigenbases:
    """The bases of matrices, with sides of up to `longest` rotated, and of short vectors."""
    return eigenbases(layout, longest, min(_LONGEST_VECTOR, longest))


def within_range(grad: Tensor) -> Tensor:
    """Gradients `(B, N)`, those beyond the range of what can be rotated scaled down to it."""
    largest = grad.detach().abs().amax(1, keepdim=True)
    return torch.where(largest > _MOST, grad * (_MOST / largest), grad)


def renewed(
    bases: Eigenbases,
    gram: Tensor,
    basis: Tensor,
    grad: Tensor,
    unit: Tensor,
    change: Tensor,
    step: Tensor,
    frequency: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """L and R with a gradient more, and bases that fit them where they are due.

    Args:
        bases: Which sides are rotated.
        gram: L and R, `(B, K)`, in units of the last gradient's unit.
        basis: Q_L and Q_R, `(B, K)`.
        grad: The gradient in the coordinates of θ, `(B, N)`, finite.
        unit: Its unit, `(B,)`, > 0.
        change: The last unit over this one, `(B,)`; 0 in the first step.
        step: Gradients so far with this one, `(B,)`, >= 1.
        frequency: Steps between power iterations.

    Returns:
        L and R, Q_L and Q_R, and where the latter are new, booleans `(B,)`.
    """
    weight = averaging_weight(_DECAY, step.clamp_min(1)).to(gram)[:, None]
    gram = torch.lerp(gram.detach() * (change * change)[:, None], bases.products(grad, unit), weight)
    first = step == 1
    due = (step % frequency == 0) | (step[:, None] == step.new_tensor(_EARLY)).any(1)
    (new,) = where_rows(first, lambda: (bases.eigenvectors(gram),), (basis,))
    (new,) = where_rows(due & ~first, lambda: bases.improved(gram, basis)[:1], (new,))
    return gram, new, due


def in_new_bases(
    bases: Eigenbases,
    old: Tensor,
    new: Tensor,
    averages: Iterable[Tensor],
    second: Tensor,
    momentum: Tensor,
    kinetic: Tensor,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Averages, v and π, `(B, N)`, in new bases; π has no more energy than before, `(B,)`, whatever rounding does."""
    turned = [bases.moved(x, old, new) for x in averages]
    momentum = bases.moved(momentum, old, new)
    fit = (kinetic / (0.5 * (momentum * momentum).sum(1)).clamp_min(LEAST)).clamp_max(1).sqrt().detach()
    return turned, bases.moved_variances(second, old, new), momentum * fit[:, None]
