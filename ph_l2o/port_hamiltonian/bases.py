"""The bases in which `PortHamiltonianKronecker` steps: which there are, when they are renewed, what turns with them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from ph_l2o.optimizers.eigenbases import Eigenbases, eigenbases, where_rows
from ph_l2o.params import Layout
from ph_l2o.port_hamiltonian.energy import LEAST, averaging_weight

DECAY = 0.95  # of L and R
_LONGEST_VECTOR = 128  # that is rotated
WHOLE = 128  # sides of up to this length keep all eigenvectors, whatever the rank
_MOST = 1e30  # of a gradient's entries, so that sums of them do not overflow
FLOOR = 1e-5  # of the eigenvalues of L and R, over their mean
EARLY = (1, 2, 4, 7)  # steps after which bases are renewed besides


def bases_of(layout: Layout, longest: int, rank: float | None) -> Eigenbases:
    """The bases of matrices, with sides of up to `longest` rotated, and of short vectors; `rank`: see `Eigenbases`."""
    return eigenbases(layout, longest, min(_LONGEST_VECTOR, longest), rank, WHOLE)


def within_range(grad: Tensor) -> Tensor:
    """Gradients `(B, N)`, those beyond the range of what can be rotated scaled down to it."""
    return grad * into_range(grad.detach().abs().amax(1, keepdim=True))


def into_range(largest: Tensor) -> Tensor:
    """What scales gradients down, for the largest absolute value of each."""
    return (_MOST / largest).clamp_max(1)


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
    old, first = bases.opened(basis), step == 1
    keep, scale = weights(step.detach().clamp_min(1), change)
    keep, scale = keep.to(gram)[:, None], scale.to(gram)[:, None]
    grad = grad * (scale / bases.largest(grad).maximum(unit[:, None]))
    gram = bases.with_products(gram.detach() * keep, old, grad)
    due = (step % frequency == 0) | (step[:, None] == step.new_tensor(EARLY)).any(1)
    new, gram = where_rows(first, lambda: bases.first(gram, grad), (basis, gram))
    new, gram = where_rows(due & ~first, lambda: bases.improved(gram, old, FLOOR)[:2], (new, gram))
    return gram, new, due


def weights(step: Tensor, change: Tensor | float) -> tuple[Tensor, Tensor]:
    """Of L and R, and of the gradient, before its product with itself."""
    weight = averaging_weight(DECAY, step)
    return change * change * (1 - weight), weight.sqrt()


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
    changes = bases.change(bases.opened(old), bases.opened(new))
    turned = [bases.moved(x, changes) for x in averages]
    momentum = bases.moved(momentum, changes)
    fit = (kinetic / (0.5 * (momentum * momentum).sum(1)).clamp_min(LEAST)).clamp_max(1).sqrt().detach()
    return turned, bases.moved_variances(second, changes), momentum * fit[:, None]
