"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

Symbols: as in `ph_l2o/optimizers/eigenbases.py`; and Adam's averages M (`first`) and V (`second`).
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ph_l2o.optimizers.classical import ClassicalOptimizer, adam_step, decades
from ph_l2o.optimizers.eigenbases import Eigenbases, check_settings, eigenbases, where_rows
from ph_l2o.params import Layout, Params


class SOAPState(NamedTuple):
    """What SOAP remembers.

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
    compiles_well: ClassVar[bool] = False  # a graph computes new bases in every step

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
        check_settings(precondition_frequency, max_preconditioner_dim)
        self.precondition_frequency, self.max_preconditioner_dim = precondition_frequency, max_preconditioner_dim

    def init(self, params: Params) -> SOAPState:
        zero, plan = torch.zeros_like(params.flat), self._plan(params.layout)
        empty = zero.new_zeros(len(zero), sum(plan.sizes))
        return SOAPState(torch.zeros_like(params.flat[:, 0]), zero, zero, empty, empty)

    def update(self, params: Params, grads: Params, loss: Tensor | None, state: SOAPState) -> tuple[Params, SOAPState]:
        h, grad, plan = self.hyperparameters, grads.flat, self._plan(params.layout)
        step = age = state.step + 1
        old_gram, old_basis = state.gram.detach(), state.basis.detach()
        decay = h["lr"] * h["weight_decay"]
        if plan.sizes:
            age = step - 1
            begun = (age > 0)[:, None].to(grad.dtype)
            grad, decay = begun * grad, begun * decay
        turning = plan.opened(old_basis)
        grad = plan.rotated(grad, turning)
        first = torch.lerp(grad, state.first, h["beta1"])
        second = torch.lerp(grad * grad, state.second, h["beta2"])
        move = adam_step(first, second, age.clamp_min(1)[:, None], h)
        flat = params.flat * (1 - decay) - plan.rotated(move, turning, back=True)
        if not plan.sizes:
            return params.like(flat), SOAPState(step, first, second, old_gram, old_basis)

        beta2 = h["beta2"].detach()
        gram = plan.with_products(old_gram * beta2, turning, grads.flat.detach() * (1 - beta2).sqrt())
        (basis,) = where_rows(age == 0, lambda: (plan.eigenvectors(gram),), (old_basis,))
        due = (age > 0) & (age % self.precondition_frequency == 0)

        def renewed() -> tuple[Tensor, ...]:
            old = plan.opened(basis)
            new, _, orders = plan.improved(gram, old)
            return new, plan.moved(first, plan.change(old, plan.opened(new))), plan.sorted(second, orders)

        basis, first, second = where_rows(due, renewed, (basis, first, second))
        return params.like(flat), SOAPState(step, first, second, gram, basis)

    def _plan(self, layout: Layout) -> Eigenbases:
        return eigenbases(layout, self.max_preconditioner_dim)
