"""The sides of a matrix in coordinates of its own: all eigenvectors of a short side, the leading ones of a long side.

All tensors have a batch axis B in front. A matrix X `(B, m, n)` is turned on its rows, axis 1, to QᵀX, or on its
columns, axis 2, to XQ; `size` is m or n.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

_LEAST = 1e-36


class Change(NamedTuple):
    """From the old basis of a side to the new one.

    Attributes:
        old: The old basis, opened.
        new: The new one.
        product: Q_oldᵀ Q_new, for leading eigenvectors its first columns.
    """

    old: Any
    new: Any
    product: Tensor


@dataclass(frozen=True)
class Side:
    """A side in the basis of all eigenvectors of its factor, L or R: `gram`, `(B, size, size)`; `q` is their matrix Q.

    Attributes:
        axis: 1 for rows, 2 for columns.
        size: Of the side, >= 1.
    """

    axis: int
    size: int

    @property
    def rank(self) -> int:
        """Columns of gram and basis."""
        return self.size

    def identity(self, like: Tensor) -> Tensor:
        """Q = I, `(size, rank)`."""
        return torch.eye(self.size, dtype=like.dtype, device=like.device)

    def opened(self, q: Tensor) -> Any:
        """A basis as the other methods take it."""
        return q

    def turned(self, x: Tensor, q: Any, back: bool = False) -> Tensor:
        """QᵀX or XQ; to go `back` QX or XQᵀ."""
        if self.axis == 1:
            return (q if back else q.mT) @ x
        return x @ (q.mT if back else q)

    def with_product(self, x: Tensor, gram: Tensor, q: Any, out: Tensor | None = None) -> Tensor:
        """L + XXᵀ or R + XᵀX, which may be put into `out`."""
        del q
        return torch.baddbmm(gram, *((x, x.mT) if self.axis == 1 else (x.mT, x)), out=out)

    def improved(self, gram: Tensor, q: Any, floor: float) -> tuple[Tensor, Tensor, Tensor]:
        """A basis nearer to the eigenvectors, by a power iteration Q ← QR(LQ); the factor, and the columns' order.

        Eigenvalues are taken for larger by `floor` times their mean: above 0, vectors of those that are 0 stay as they
        are, where else rounding would make new ones.
        """
        power = gram @ q
        if floor:
            mean = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
            power = torch.addcmul(power, q, floor * mean)
        order = _by_size(q, power)
        return torch.linalg.qr(_columns(power, order)).Q, gram, order

    def change(self, old: Any, new: Any) -> Change:
        """From one basis to another."""
        return Change(old, new, old.mT @ new)

    def moved(self, x: Tensor, change: Change) -> Tensor:
        """What has been turned by the old basis, as it is in the new one."""
        return self.turned(x, change.product)

    def moved_variances(self, x: Tensor, change: Change) -> Tensor:
        """Variances in the old basis as they are in the new one, if what varies there is uncorrelated.

        The squares of an orthogonal matrix have rows and columns that sum to 1, so the sum stays.
        """
        shares = change.product.square()
        return self.turned(x, shares / shares.sum(2, keepdim=True))  # exactly, whatever rounding does


class Reflections(NamedTuple):
    """Y and T of Q = I - Y T Yᵀ; see `LeadingSide`."""

    y: Tensor
    t: Tensor


@dataclass(frozen=True)
class LeadingSide(Side):
    """A long side in a basis of which the first k columns V are the leading eigenvectors, in k·size numbers.

    Q = I - Y T Yᵀ is a product of k reflections, orthogonal for any Y `(size, k)` that is 1 on the diagonal and 0 above
    it, with T⁻¹ the upper triangle of YᵀY, its diagonal halved. So Q has V and, for all the rest, coordinates as near
    to those of X as may be. `q`, `(B, size, k)`, has Y below the diagonal and T from there on up. Of the factor R there
    is `gram`, what it makes of V: R V, `(B, size, k)`.

    Attributes:
        columns: k, < size.

    References: Schreiber and Van Loan 1989, "A storage-efficient WY representation for products of Householder
    transformations".
    """

    columns: int

    @property
    def rank(self) -> int:
        """See `Side`."""
        return self.columns

    def identity(self, like: Tensor) -> Tensor:
        """See `Side`."""
        return like.new_zeros(self.size, self.columns)

    def opened(self, q: Tensor) -> Reflections:
        """See `Side`."""
        top, bottom = q.split((self.columns, self.size - self.columns), 1)
        return Reflections(torch.cat([top.tril(-1) + self._eye(q, self.columns), bottom], 1), top.triu())

    def turned(self, x: Tensor, q: Reflections, back: bool = False) -> Tensor:
        """See `Side`."""
        y, t = q.y, q.t if back == (self.axis == 1) else q.t.mT
        if self.axis == 1:
            return torch.baddbmm(x, y, t @ (y.mT @ x), alpha=-1)
        return torch.baddbmm(x, (x @ y) @ t, y.mT, alpha=-1)

    def with_product(self, x: Tensor, gram: Tensor, q: Reflections, out: Tensor | None = None) -> Tensor:
        """R V + XᵀXV; see `Side`."""
        x = x if self.axis == 2 else x.mT
        some = torch.baddbmm(x[..., : self.columns], x @ q.y, q.t @ q.y[:, : self.columns].mT, alpha=-1)
        return torch.baddbmm(gram, x.mT, some, out=out)

    def first(self, x: Tensor, of_other: Tensor | None) -> tuple[Tensor, Tensor]:
        """Basis and factor after the first X; `of_other` are the eigenvectors of its short side, None for I."""
        grown = x if self.axis == 1 else x.mT
        grown = grown if of_other is None else grown @ of_other
        q = self._basis_of(grown[..., : self.columns])
        return q, self.with_product(x, torch.zeros_like(q), self.opened(q))

    def improved(self, gram: Tensor, q: Reflections, floor: float) -> tuple[Tensor, Tensor, Tensor]:
        """See `Side`, without a floor; what the factor makes of the new V comes from R = (R V) Vᵀ."""
        v = self._leading(q)
        order = _by_size(v, gram)
        new = self._basis_of(_columns(gram, order))
        return new, gram @ (v.mT @ self._leading(self.opened(new))), order

    def change(self, old: Reflections, new: Reflections) -> Change:
        """See `Side`."""
        return Change(old, new, LeadingSide(1, self.size, self.columns).turned(self._leading(new), old))

    def moved(self, x: Tensor, change: Change) -> Tensor:
        """See `Side`."""
        return self.turned(self.turned(x, change.old, back=True), change.new)

    def moved_variances(self, x: Tensor, change: Change) -> Tensor:
        """See `Side`; what the first k coordinates have no part in is shared out among the others as before."""
        x = x if self.axis == 2 else x.mT
        shares = change.product.square()
        shares = shares / shares.sum(2, keepdim=True).clamp_min(1)
        leading, others = x @ shares, x[..., self.columns :]
        left = (x.sum(2, keepdim=True) - leading.sum(2, keepdim=True)).clamp_min(0)
        x = torch.cat([leading, others * (left / others.sum(2, keepdim=True).clamp_min(_LEAST))], 2)
        return x if self.axis == 2 else x.mT

    def _leading(self, q: Reflections) -> Tensor:
        """V, the first k columns of Q."""
        return self._eye(q.y, self.size) - q.y @ (q.t @ q.y[:, : self.columns].mT)

    def _basis_of(self, x: Tensor) -> Tensor:
        """A basis of which the first columns span those of X, each one of them with the columns before it."""
        top, bottom = torch.geqrf(x)[0].split((self.columns, self.size - self.columns), 1)
        top = top.tril(-1)
        y, eye = top + self._eye(x, self.columns), self._eye(x, self.columns)
        inner = torch.baddbmm(bottom.mT @ bottom, y.mT, y)
        inverse = inner.triu(1) + torch.diag_embed(0.5 * inner.diagonal(dim1=1, dim2=2))
        t = torch.linalg.solve_triangular(inverse, eye.expand_as(inverse), upper=True)
        return torch.cat([top + t.triu(), bottom], 1)

    def _eye(self, like: Tensor, rows: int) -> Tensor:
        return torch.eye(rows, self.columns, dtype=like.dtype, device=like.device)


def _by_size(q: Tensor, power: Tensor) -> Tensor:
    """Order of the columns by their Rayleigh quotients, the largest first."""
    return (q * power).sum(1).argsort(1, descending=True)


def _columns(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(2, order[:, None].expand_as(x))
