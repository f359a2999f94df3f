"""Orthogonal bases in which the gradients of matrices are nearly uncorrelated: the eigenvectors of Shampoo's factors.

Symbols: a matrix's gradient G, the averages L of GGᵀ and R of GᵀG (code: `gram`), their eigenvectors Q_L and Q_R
(`basis`). L, R and their eigenvectors lie in one row for all matrices of an optimizee, in the order of the tensors, L
before R; sides that are not rotated have none. K is the sum of their squared dimensions.

References: Gupta et al. 2018, "Shampoo: preconditioned stochastic tensor optimization" (arXiv 1802.09568); Vyas et al.
2024, "SOAP: improving and stabilizing Shampoo using Adam" (arXiv 2409.11321).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ph_l2o import segments
from ph_l2o.optimizers.matrices import matrix_shapes
from ph_l2o.params import Layout


class Eigenbases:
    """Which sides of the tensors are rotated, and what to do with them; all of `flat` have shape `(B, N)`.

    Tensors with more than two axes count as matrices (`matrix_shapes`), short vectors as matrices of one column, of
    which only L is there. Nothing is rotated of scalars and other vectors.

    Args:
        layout: Of the optimizee.
        longest: Longest side of a matrix that is rotated, >= 0.
        longest_vector: Longest vector that is rotated, >= 0.

    Attributes:
        sizes: Numbers in each block of `gram` and `basis`.
    """

    def __init__(self, layout: Layout, longest: int, longest_vector: int = 0):
        # Of each tensor its shape as a matrix, and which axes are rotated: 1 by Q_L, 2 by Q_R.
        self._tensors = list[tuple[tuple[int, ...], tuple[int, ...]]]()
        for shape, size in zip(matrix_shapes(layout), layout.sizes, strict=True):
            if shape is None:
                self._tensors.append(((size, 1), (1,) if 1 < size <= longest_vector else ()))
            else:
                self._tensors.append((shape, tuple(k for k, n in enumerate(shape, start=1) if 0 < n <= longest)))
        self._dims = [shape[axis - 1] for shape, axes in self._tensors for axis in axes]
        self._tensor_sizes = layout.sizes
        self.sizes = [n * n for n in self._dims]

    def identity(self, like: Tensor) -> Tensor:
        """Q_L = I and Q_R = I for as many problems as `like` has, `(B, K)`."""
        if not self.sizes:
            return like.new_zeros(len(like), 0)
        row = torch.cat([torch.eye(n, dtype=like.dtype, device=like.device).flatten() for n in self._dims])
        return row.expand(len(like), -1).contiguous()

    def rotated(self, flat: Tensor, basis: Tensor, *, back: bool = False) -> Tensor:
        """Each matrix X as Q_Lᵀ X Q_R, or Q_L X Q_Rᵀ to go back."""
        if not self.sizes:
            return flat
        blocks, parts = iter(self._blocks(basis)), []
        for x, axes in self._matrices(flat):
            for axis in axes:
                q = next(blocks)
                x = (q if back else q.mT) @ x if axis == 1 else x @ (q.mT if back else q)
            parts.append(x.flatten(1))
        return torch.cat(parts, 1)

    def moved(self, flat: Tensor, old: Tensor, new: Tensor) -> Tensor:
        """What has been rotated by the `old` bases, as it is in the `new` ones."""
        return self.rotated(self.rotated(flat, old, back=True), new)

    def moved_variances(self, flat: Tensor, old: Tensor, new: Tensor) -> Tensor:
        """Variances in the `old` bases as they are in the `new` ones, if what varies there is uncorrelated.

        The squares of an orthogonal matrix have rows and columns that sum to 1, so each tensor's sum stays.
        """
        blocks, parts = zip(self._blocks(old), self._blocks(new), strict=True), []
        for x, axes in self._matrices(flat):
            for axis in axes:
                before, after = next(blocks)
                shares = (before.mT @ after).square()
                shares = shares / shares.sum(2, keepdim=True)  # exactly, whatever rounding does
                x = shares.mT @ x if axis == 1 else x @ shares
            parts.append(x.flatten(1))
        return torch.cat(parts, 1)

    def products(self, flat: Tensor, unit: Tensor | None = None) -> Tensor:
        """GGᵀ and GᵀG, `(B, K)`; with a `unit` `(B,)` of G / unit, or of G / max |G| where that is smaller."""
        found = []
        for x, axes in self._matrices(flat):
            if axes and unit is not None:
                x = x / torch.maximum(unit, x.abs().amax((1, 2)))[:, None, None]
            found += [x @ x.mT if axis == 1 else x.mT @ x for axis in axes]
        return _packed(found)

    def eigenvectors(self, gram: Tensor) -> Tensor:
        """Q_L and Q_R of L and R, the largest eigenvalue's first, `(B, K)`."""
        # `eigh` raises an error if a number is not finite; the problem's parameters are not finite by then either. In
        # float32 it was seen to return NaN for gradients of low rank.
        exact = gram.nan_to_num(0.0, 0.0, 0.0).double()
        return _packed([torch.linalg.eigh(x).eigenvectors.flip(2).to(gram.dtype) for x in self._blocks(exact)])

    def improved(self, gram: Tensor, basis: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Q_L and Q_R after a power iteration, Q ← QR(LQ), and the order of their columns, by eigenvalue."""
        bases, orders = [], []
        for block, q in zip(self._blocks(gram), self._blocks(basis), strict=True):
            power = block @ q
            order = (q * power).sum(1).argsort(1, descending=True)  # of the Rayleigh quotients
            bases.append(torch.linalg.qr(power.gather(2, order[:, None].expand_as(power))).Q)
            orders.append(order)
        return _packed(bases), orders

    def sorted(self, flat: Tensor, orders: list[Tensor]) -> Tensor:
        """Rows and columns in the order that `improved` has given to those of the bases."""
        of_sides, parts = iter(orders), []
        for x, axes in self._matrices(flat):
            for axis in axes:
                x = x.gather(axis, next(of_sides).unsqueeze(3 - axis).expand_as(x))
            parts.append(x.flatten(1))
        return torch.cat(parts, 1)

    def _matrices(self, flat: Tensor) -> list[tuple[Tensor, tuple[int, ...]]]:
        """Each tensor, as a matrix if it is rotated, and its rotated axes."""
        parts = flat.split(self._tensor_sizes, 1)
        return [
            (x.unflatten(1, shape) if axes else x, axes) for x, (shape, axes) in zip(parts, self._tensors, strict=True)
        ]

    def _blocks(self, packed: Tensor) -> list[Tensor]:
        return [x.unflatten(1, (n, n)) for x, n in zip(packed.split(self.sizes, 1), self._dims, strict=True)]


eigenbases = functools.lru_cache(maxsize=64)(Eigenbases)


def check_settings(precondition_frequency: int, max_preconditioner_dim: int) -> None:
    """Raise ValueError if an argument that optimizers with such bases share is out of range."""
    if precondition_frequency < 1:
        raise ValueError(f"optimizer.precondition_frequency={precondition_frequency}: must be >= 1 (steps)")
    if max_preconditioner_dim < 0:
        raise ValueError(f"optimizer.max_preconditioner_dim={max_preconditioner_dim}: must be >= 0 (coordinates)")


def where_rows(rows: Tensor, make: Callable[[], tuple[Tensor, ...]], others: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What `make` returns in these rows `(B,)`, else `others`; not made where it is known that no row needs it.

    It is not known in graphs and under vmap: then it is always made.
    """
    count = _count(rows)
    if count == 0:
        return others
    made = make()
    if count == len(rows):
        return made
    return tuple(
        torch.where(rows.view(-1, *[1] * (new.dim() - 1)), new, old) for new, old in zip(made, others, strict=True)
    )


def _count(rows: Tensor) -> int | None:
    """How many there are; None where that cannot be known."""
    if segments.is_tracing():
        return None
    try:
        return int(rows.sum())
    except RuntimeError:  # under vmap a tensor is no number
        return None


def _packed(blocks: list[Tensor]) -> Tensor:
    return torch.cat([x.flatten(1) for x in blocks], 1)
