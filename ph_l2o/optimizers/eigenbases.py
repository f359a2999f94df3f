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
from typing import Any

import torch
from torch import Tensor

from ph_l2o import segments
from ph_l2o.optimizers.matrices import matrix_shapes
from ph_l2o.optimizers.sides import Change, LeadingSide, Side
from ph_l2o.params import Layout

Opened = list[Any]  # for each side that is rotated its basis, as `Side.opened` makes it


class Eigenbases:
    """Which sides of the tensors are rotated, and what to do with them; all of `flat` have shape `(B, N)`.

    Tensors with more than two axes count as matrices (`matrix_shapes`), short vectors as matrices of one column, of
    which only L is there. Nothing is rotated of scalars and other vectors.

    Args:
        layout: Of the optimizee.
        longest: Longest side of a matrix that is rotated, >= 0.
        longest_vector: Longest vector that is rotated, >= 0.
        rank: Eigenvectors of a matrix's longer side over the length of its shorter one, > 0: where that is fewer than
            all, only so many leading ones are kept (`sides.LeadingSide`); None: all.
        whole: Longest side that keeps all of them in any case.

    Attributes:
        sizes: Numbers in each block of `gram` and `basis`.
    """

    def __init__(
        self, layout: Layout, longest: int, longest_vector: int = 0, rank: float | None = None, whole: int = 0
    ):
        # Of each tensor its shape as a matrix, and its sides that are rotated.
        self._tensors = list[tuple[tuple[int, ...], list[Side]]]()
        for shape, size in zip(matrix_shapes(layout), layout.sizes, strict=True):
            if shape is None:
                self._tensors.append(((size, 1), [Side(1, size)] if 1 < size <= longest_vector else []))
                continue
            rotated = [(axis, n) for axis, n in enumerate(shape, start=1) if 0 < n <= longest]
            shorter = min(shape)
            most = longest if rank is None else max(1, int(rank * shorter))
            sides = [
                LeadingSide(axis, n, most) if n > max(most, shorter, whole) else Side(axis, n) for axis, n in rotated
            ]
            self._tensors.append((shape, sides))
        self._sides = [side for _, sides in self._tensors for side in sides]
        self._tensor_sizes = layout.sizes
        self.sizes = [side.size * side.rank for side in self._sides]

    def identity(self, like: Tensor) -> Tensor:
        """Q_L = I and Q_R = I for as many problems as `like` has, `(B, K)`."""
        if not self.sizes:
            return like.new_zeros(len(like), 0)
        row = torch.cat([side.identity(like).flatten() for side in self._sides])
        return row.expand(len(like), -1).contiguous()

    def opened(self, basis: Tensor) -> Opened:
        """Bases `(B, K)` as the other methods take them."""
        return [side.opened(q) for side, q in zip(self._sides, self._blocks(basis), strict=True)]

    def rotated(self, flat: Tensor, basis: Opened, *, back: bool = False) -> Tensor:
        """Each matrix X as Q_Lᵀ X Q_R, or Q_L X Q_Rᵀ to go back."""
        blocks = iter(basis)
        return self._by_sides(flat, lambda x, side: side.turned(x, next(blocks), back))

    def change(self, old: Opened, new: Opened) -> list[Change]:
        """From old bases to new ones, for `moved` and `moved_variances`."""
        return [side.change(a, b) for side, a, b in zip(self._sides, old, new, strict=True)]

    def moved(self, flat: Tensor, changes: list[Change]) -> Tensor:
        """What has been rotated by the old bases, as it is in the new ones."""
        of_sides = iter(changes)
        return self._by_sides(flat, lambda x, side: side.moved(x, next(of_sides)))

    def moved_variances(self, flat: Tensor, changes: list[Change]) -> Tensor:
        """Variances in the old bases as they are in the new ones, with the same sum for each tensor."""
        of_sides = iter(changes)
        return self._by_sides(flat, lambda x, side: side.moved_variances(x, next(of_sides)))

    def with_products(self, gram: Tensor, basis: Opened, flat: Tensor) -> Tensor:
        """L + GGᵀ and R + GᵀG, `(B, K)`."""
        blocks, found = zip(self._blocks(gram), basis, strict=True), []
        for x, sides in self._matrices(flat):
            found += [side.with_product(x, *next(blocks)) for side in sides]
        return _packed(found)

    def add_products(self, gram: Tensor, basis: Opened, flat: Tensor) -> None:
        """L ← L + GGᵀ and R ← R + GᵀG, in place."""
        blocks = zip(self._blocks(gram), basis, strict=True)
        for x, sides in self._matrices(flat):
            for side in sides:
                block, q = next(blocks)
                side.with_product(x, block, q, out=block)

    def first(self, gram: Tensor, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Q_L and Q_R, the largest eigenvalue's first, and L and R, after the first gradient.

        `gram` has L and R of whole sides, and those of others come from the gradient.
        """
        # Decompositions raise an error if a number is not finite; the parameters are not finite by then either.
        blocks, bases, grams = iter(self._blocks(gram.nan_to_num(0.0, 0.0, 0.0))), [], []
        for x, sides in self._matrices(flat.nan_to_num(0.0, 0.0, 0.0)):
            factors = {side: next(blocks) for side in sides}
            whole = {s: _eigenvectors(block) for s, block in factors.items() if not isinstance(s, LeadingSide)}
            for side in sides:
                q, factor = whole.get(side), factors[side]
                if isinstance(side, LeadingSide):
                    q, factor = side.first(x, next(iter(whole.values()), None))
                bases.append(q)
                grams.append(factor)
        return _packed(bases), _packed(grams)

    def eigenvectors(self, gram: Tensor) -> Tensor:
        """Q_L and Q_R of L and R of whole sides, the largest eigenvalue's first, `(B, K)`."""
        return _packed([_eigenvectors(x) for x in self._blocks(gram.nan_to_num(0.0, 0.0, 0.0))])

    def improved(self, gram: Tensor, basis: Opened, floor: float = 0.0) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Q_L and Q_R after a power iteration, Q ← QR(LQ); L and R; the order of the bases' columns, by eigenvalue.

        `floor`: see `Side.improved`.
        """
        blocks = zip(self._sides, self._blocks(gram), basis, strict=True)
        bases, grams, orders = zip(*(side.improved(block, q, floor) for side, block, q in blocks), strict=True)
        return _packed(list(bases)), _packed(list(grams)), list(orders)

    def largest(self, flat: Tensor) -> Tensor:
        """The largest absolute value of each tensor, for all of its coordinates, `(B, N)`."""
        parts = [x.abs().amax(1, keepdim=True).expand_as(x) for x in flat.split(self._tensor_sizes, 1)]
        return _joined(parts)

    def sorted(self, flat: Tensor, orders: list[Tensor]) -> Tensor:
        """Rows and columns in the order that `improved` has given to those of the bases."""
        of_sides = iter(orders)

        def sort(x: Tensor, side: Side) -> Tensor:
            return x.gather(side.axis, next(of_sides).unsqueeze(3 - side.axis).expand_as(x))

        return self._by_sides(flat, sort)

    def _by_sides(self, flat: Tensor, act: Callable[[Tensor, Side], Tensor]) -> Tensor:
        parts = []
        for x, sides in self._matrices(flat):
            for side in sides:
                x = act(x, side)
            parts.append(x.flatten(1))
        return _joined(parts)

    def _matrices(self, flat: Tensor) -> list[tuple[Tensor, list[Side]]]:
        """Each tensor, as a matrix if it is rotated, and its rotated sides."""
        parts = flat.split(self._tensor_sizes, 1)
        return [
            (x.unflatten(1, shape) if sides else x, sides)
            for x, (shape, sides) in zip(parts, self._tensors, strict=True)
        ]

    def _blocks(self, packed: Tensor) -> list[Tensor]:
        """For each side `(B, size, rank)`."""
        parts = zip(packed.split(self.sizes, 1), self._sides, strict=True)
        return [x.unflatten(1, (side.size, side.rank)) for x, side in parts]


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


def _eigenvectors(factor: Tensor) -> Tensor:
    # In float32 `eigh` was seen to return NaN for gradients of low rank.
    return torch.linalg.eigh(factor.double()).eigenvectors.flip(2).to(factor)


def _packed(blocks: list[Tensor]) -> Tensor:
    return _joined([x.flatten(1) for x in blocks])


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
