"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

Symbols: a matrix's gradient G, Shampoo's averages L of GGᵀ and R of GᵀG (code: `gram`), their eigenvectors Q_L and Q_R
(`basis`), Adam's averages M (`first`) and V (`second`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from ph_l2o import segments
from ph_l2o.optimizers.classical import ClassicalOptimizer, adam_step, decades
from ph_l2o.optimizers.matrices import matrix_shapes
from ph_l2o.params import Layout, Params


class SOAPState(NamedTuple):
    """What SOAP remembers.

    L, R and their eigenvectors lie in one row for all matrices, in the order of the tensors, L before R; sides that
    are not preconditioned have none. K is the sum of their squared dimensions.

    Attributes:
        step: Steps done, `(B,)`.
        first: Average of the gradient in the eigenbasis, `(B, N)`.
        second: Average of its square there, `(B, N)`.
        gram: L and R, `(B, K)`.
        basis: Q_L and Q_R, `(B, K)`.
    """

    step: Tensor
    first: Tensor
    second: Tensor
    gram: Tensor
    basis: Tensor


class SOAP(ClassicalOptimizer):
    """SOAP: Adam's averages M and V are those of Q_Lᵀ G Q_R, and W ← (1 - lr weight_decay) W - Q_L Adam(M, V) Q_Rᵀ.

    L ← beta2 L + (1 - beta2) GGᵀ and R ← beta2 R + (1 - beta2) GᵀG. Every `precondition_frequency` steps one power
    iteration, Q ← QR(LQ), brings the bases up to date; their columns, and V with them, are sorted by eigenvalue
    before. M is turned from the old bases to the new ones, V is not.

    As in the authors' code, the first gradient only gives L and R, whose eigenvectors are the first bases, and moves
    nothing, so that no gradient is seen in its own basis. Tensors with more than two axes are flattened to matrices
    (`matrix_shapes`). A side longer than `max_preconditioner_dim` is not rotated (Q = I). Vectors, scalars, and
    matrices of which both sides are too long get Adam; if there is nothing else, this is Adam from the first step on.

    Two things differ from the authors' code: eps is added to √V̂, as torch's Adam does it, not to √V, and beta1 is 0.9,
    not 0.95, which came out better after 100 steps on MNIST.

    Bases count as constants in meta-gradients: the derivative of eigenvectors is infinite where eigenvalues meet.
    A step without new bases costs no decomposition. To know that, `update` looks at the step counter (on a GPU it waits
    for it). Where that cannot be done, in graphs and under vmap, all steps compute new bases and select; the result is
    the same, and much slower.

    Args:
        lr: Learning rate, > 0.
        beta1: Decay of M, in [0, 1).
        beta2: Decay of V, L and R, in [0, 1).
        eps: Added to √V̂, >= 0.
        weight_decay: Decay of the parameters, in units of the learning rate, >= 0.
        precondition_frequency: Steps between power iterations, >= 1.
        max_preconditioner_dim: Longest side of a matrix that is rotated, >= 0.

    Raises:
        ValueError: If an argument is out of range.

    Reference: Vyas et al. 2024, "SOAP: improving and stabilizing Shampoo using Adam" (arXiv 2409.11321).
    """

    takes_padding: ClassVar[bool] = False  # where matrices lie is part of the rule

    grid: ClassVar[dict[str, tuple[float, ...]]] = {"lr": decades(-3.5, 0.5), "beta2": (0.9, 0.99)}

    def __init__(
        self,
        *,
        lr: float = 0.01,
        beta1: float = 0.9,
        beta2: float = 0.95,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        precondition_frequency: int = 10,
        max_preconditioner_dim: int = 1024,
    ):
        super().__init__(lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)
        if precondition_frequency < 1:
            raise ValueError(f"optimizer.precondition_frequency={precondition_frequency}: must be >= 1 (steps)")
        if max_preconditioner_dim < 0:
            raise ValueError(f"optimizer.max_preconditioner_dim={max_preconditioner_dim}: must be >= 0 (coordinates)")
        self.precondition_frequency, self.max_preconditioner_dim = precondition_frequency, max_preconditioner_dim

    def init(self, params: Params) -> SOAPState:
        """Zeros; see `LearnedOptimizer.init`."""
        zero, plan = torch.zeros_like(params.flat), self._plan(params.layout)
        empty = zero.new_zeros(len(zero), sum(plan.sizes))
        return SOAPState(torch.zeros_like(params.flat[:, 0]), zero, zero, empty, empty)

    def update(self, params: Params, grads: Params, loss: Tensor | None, state: SOAPState) -> tuple[Params, SOAPState]:
        """One step; see `LearnedOptimizer.update`."""
        del loss
        h, grad, plan = self.hyperparameters, grads.flat, self._plan(params.layout)
        step = age = state.step + 1
        old_gram, old_basis = state.gram.detach(), state.basis.detach()
        decay = h["lr"] * h["weight_decay"]
        if plan.sizes:
            age = step - 1
            begun = (age > 0)[:, None].to(grad.dtype)
            grad, decay = begun * grad, begun * decay
        grad = plan.rotated(grad, old_basis)
        first = torch.lerp(grad, state.first, h["beta1"])
        second = torch.lerp(grad * grad, state.second, h["beta2"])
        move = adam_step(first, second, age.clamp_min(1)[:, None], h)
        flat = params.flat * (1 - decay) - plan.rotated(move, old_basis, back=True)
        if not plan.sizes:
            return params.like(flat), SOAPState(step, first, second, old_gram, old_basis)

        gram = torch.lerp(plan.products(grads.flat.detach()), old_gram, h["beta2"].detach())
        (basis,) = _where(age == 0, lambda: (plan.eigenvectors(gram),), (old_basis,))
        due = (age > 0) & (age % self.precondition_frequency == 0)
        basis, first, second = _where(due, lambda: plan.improved(gram, basis, first, second), (basis, first, second))
        return params.like(flat), SOAPState(step, first, second, gram, basis)

    def _plan(self, layout: Layout) -> _Plan:
        return _plan(layout, self.max_preconditioner_dim)


def _where(rows: Tensor, make: Callable[[], tuple[Tensor, ...]], others: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What `make` returns in these rows `(B,)`, else `others`; not made where it is known that no row needs it."""
    known = not segments.is_tracing() and not is_functorch_wrapped_tensor(rows)
    if known and not rows.any():
        return others
    made = make()
    if known and rows.all():
        return made
    return tuple(torch.where(rows[:, None], new, old) for new, old in zip(made, others, strict=True))


class _Plan:
    """Which sides of the tensors are rotated, and what to do with them; all of `flat` have shape `(B, N)`.

    Attributes:
        sizes: Numbers in each block of `gram` and `basis`.
    """

    def __init__(self, layout: Layout, longest: int):
        # Of each tensor its shape as a matrix, and which axes are rotated: 1 by Q_L, 2 by Q_R.
        self._tensors = [
            (shape or (), tuple(axis for axis, n in enumerate(shape or (), start=1) if n <= longest))
            for shape in matrix_shapes(layout)
        ]
        self._dims = [shape[axis - 1] for shape, axes in self._tensors for axis in axes]
        self._tensor_sizes = layout.sizes
        self.sizes = [n * n for n in self._dims]

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

    def products(self, flat: Tensor) -> Tensor:
        """GGᵀ and GᵀG, `(B, K)`."""
        matrices = self._matrices(flat)
        return _packed([x @ x.mT if axis == 1 else x.mT @ x for x, axes in matrices for axis in axes])

    def eigenvectors(self, gram: Tensor) -> Tensor:
        """Q_L and Q_R of L and R, the largest eigenvalue's first, `(B, K)`."""
        # `eigh` raises an error if a number is not finite; the problem's parameters are not finite by then either. In
        # float32 it was seen to return NaN for gradients of low rank.
        exact = gram.nan_to_num(0.0, 0.0, 0.0).double()
        return _packed([torch.linalg.eigh(x).eigenvectors.flip(2).to(gram.dtype) for x in self._blocks(exact)])

    def improved(self, gram: Tensor, basis: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Q_L and Q_R after a power iteration, M and V in the new basis."""
        blocks = zip(self._blocks(gram), self._blocks(basis), strict=True)
        bases, parts = [], []
        for x, axes in self._matrices(second):
            for axis in axes:
                block, q = next(blocks)
                power = block @ q
                order = (q * power).sum(1).argsort(1, descending=True)  # of the Rayleigh quotients
                x = x.gather(axis, order.unsqueeze(3 - axis).expand_as(x))
                bases.append(torch.linalg.qr(power.gather(2, order[:, None].expand_as(power))).Q)
            parts.append(x.flatten(1))
        new = _packed(bases)
        return new, self.rotated(self.rotated(first, basis, back=True), new), torch.cat(parts, 1)

    def _matrices(self, flat: Tensor) -> list[tuple[Tensor, tuple[int, ...]]]:
        """Each tensor, as a matrix if it is rotated, and its rotated axes."""
        parts = flat.split(self._tensor_sizes, 1)
        return [
            (x.unflatten(1, shape) if axes else x, axes) for x, (shape, axes) in zip(parts, self._tensors, strict=True)
        ]

    def _blocks(self, packed: Tensor) -> list[Tensor]:
        return [x.unflatten(1, (n, n)) for x, n in zip(packed.split(self.sizes, 1), self._dims, strict=True)]


_plan = functools.lru_cache(maxsize=64)(_Plan)


def _packed(blocks: list[Tensor]) -> Tensor:
    return torch.cat([x.flatten(1) for x in blocks], 1)
