"""The port-Hamiltonian learned optimizer with a Kronecker-factored mass matrix.

The dynamics are those of `diagonal.py`, in coordinates in which they are easier: each matrix W of θ is seen as
X = Q_Lᵀ W Q_R, its gradient as Q_Lᵀ G Q_R, where Q_L and Q_R are eigenvectors of averages of GGᵀ and GᵀG; each short
vector w as Q_Lᵀ w. Seen in the coordinates of W the step scale is S = Q diag(s) Qᵀ with Q = Q_L ⊗ Q_R, a full matrix in
place of a diagonal one.

Whatever holds of the plain optimizer holds of this one. A change of orthogonal coordinates is a canonical
transformation: the norms of θ and π, which is all that the energies are made of, are the same in all of them, so that
neither the step nor a change of bases between steps adds to the account (`docs/theory.md`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ph_l2o.optimizers.eigenbases import Eigenbases, check_settings, where_rows
from ph_l2o.params import Layout, Params
from ph_l2o.port_hamiltonian.bases import bases_of, in_new_bases, renewed, within_range
from ph_l2o.port_hamiltonian.diagonal import PortHamiltonian
from ph_l2o.port_hamiltonian.state import PortHamiltonianState


class KroneckerState(NamedTuple):
    """What the optimizer remembers; K numbers are packed as in `eigenbases.py`.

    Attributes:
        dynamics: What the plain optimizer remembers, in the coordinates of the bases.
        gram: L and R in units of the gradient's unit squared, `(B, K)`.
        basis: Q_L and Q_R, `(B, K)`.
    """

    dynamics: PortHamiltonianState
    gram: Tensor
    basis: Tensor

    def radius(self) -> Tensor:
        """See `PortHamiltonianState.radius`."""
        return self.dynamics.radius()


class PortHamiltonianKronecker(PortHamiltonian):
    """Port-Hamiltonian dynamics in the eigenbases of Shampoo's factors; see the module's text.

    It has the same meta-parameters as `PortHamiltonian`, and can be used with weights that were trained for that one.

    Vectors of up to 128 numbers are rotated too, by eigenvectors of the average of ggᵀ.

    The first step is the plain optimizer's. After it L = GGᵀ and R = GᵀG have their exact eigenvectors as bases, later
    power iterations Q ← QR(LQ) bring them up to date. Of a matrix's longer side, if it is longer than 128, only half
    as many leading eigenvectors are kept as the shorter one has (`sides.LeadingSide`): so the state of large matrices
    has at most four numbers for each weight beside the plain optimizer's, and the cost grows with m²n, not mn². The
    averages of the gradient and π turn with the bases, v as variances of uncorrelated numbers do. Bases count as
    constants in meta-gradients: the derivative of eigenvectors is infinite where eigenvalues meet.

    A step without new bases costs no decomposition; to know that, `update` looks at the step counter, as `SOAP` does.

    Args:
        hidden_size: See `PortHamiltonian`.
        init_lr: See `PortHamiltonian`.
        budget: See `PortHamiltonian`.
        radius: See `PortHamiltonian`.
        clock: See `PortHamiltonian`.
        total_steps: See `PortHamiltonian`.
        decay: See `PortHamiltonian`.
        warmup_steps: See `PortHamiltonian`.
        precondition_frequency: Steps between power iterations, >= 1.
        max_preconditioner_dim: Longest side of a tensor that is rotated, >= 0.
        basis_rank: Eigenvectors of a matrix's longer side, if longer than 128, over the length of its shorter one, in
            (0, 1]: so many are kept; None: all.

    Raises:
        ValueError: If an argument is out of range.

    Reference for the bases: Vyas et al. 2024, "SOAP: improving and stabilizing Shampoo using Adam" (arXiv 2409.11321).
    """

    takes_padding: ClassVar[bool] = False  # where matrices lie is part of the rule
    phi_by_problem: ClassVar[bool] = True
    compiles_well: ClassVar[bool] = False  # a graph computes new bases in every step

    def __init__(
        self,
        *,
        hidden_size: int = 32,
        init_lr: float = 0.05,
        budget: float = 100.0,
        radius: float = 1000.0,
        clock: int | None = None,
        total_steps: int | None = None,
        decay: Sequence[float] | None = None,
        warmup_steps: int = 0,
        precondition_frequency: int = 10,
        max_preconditioner_dim: int = 1024,
        basis_rank: float | None = 0.5,
    ):
        super().__init__(
            hidden_size=hidden_size,
            init_lr=init_lr,
            budget=budget,
            radius=radius,
            clock=clock,
            total_steps=total_steps,
            decay=decay,
            warmup_steps=warmup_steps,
        )
        check_settings(precondition_frequency, max_preconditioner_dim)
        if basis_rank is not None and not 0 < basis_rank <= 1:
            raise ValueError(f"optimizer.basis_rank={basis_rank}: must be in (0, 1], or null")
        self.precondition_frequency, self.max_preconditioner_dim = precondition_frequency, max_preconditioner_dim
        self.basis_rank = basis_rank

    def bases(self, layout: Layout) -> Eigenbases:
        """Those in which an optimizee is seen."""
        return bases_of(layout, self.max_preconditioner_dim, self.basis_rank)

    def init(self, params: Params) -> KroneckerState:  # type: ignore[override]
        """Nothing seen yet, in the coordinates of θ; see `LearnedOptimizer.init`."""
        basis = self.bases(params.layout).identity(params.flat)
        return KroneckerState(super().init(params), torch.zeros_like(basis), basis)

    def hide_loss(self, state: KroneckerState, hidden: Tensor) -> KroneckerState:  # type: ignore[override]
        """See `LearnedOptimizer.hide_loss`."""
        return state._replace(dynamics=super().hide_loss(state.dynamics, hidden))

    def tell_steps(self, state: KroneckerState, total_steps: Tensor) -> KroneckerState:  # type: ignore[override]
        """See `LearnedOptimizer.tell_steps`."""
        return state._replace(dynamics=super().tell_steps(state.dynamics, total_steps))

    def diagnose(  # type: ignore[override]
        self, params: Params, grads: Params, loss: Tensor | None, state: KroneckerState
    ) -> dict[str, Tensor]:
        """See `PortHamiltonian.diagnose`."""
        bases = self.bases(params.layout)
        rotated_params, rotated_grads = (
            x.like(bases.rotated(x.flat, bases.opened(state.basis))) for x in (params, grads)
        )
        return super().diagnose(rotated_params, rotated_grads, loss, state.dynamics)

    def update(  # type: ignore[override]
        self, params: Params, grads: Params, loss: Tensor | None, state: KroneckerState
    ) -> tuple[Params, KroneckerState]:
        """One step; see `PortHamiltonian.update`."""
        bases, before, basis = self.bases(params.layout), state.dynamics, state.basis.detach()
        if bases.sizes:
            grads = grads.like(within_range(grads.flat))
        turning = bases.opened(basis)
        inside = params.like(bases.rotated(params.flat, turning))
        new, after = super().update(inside, grads.like(bases.rotated(grads.flat, turning)), loss, before)
        if not bases.sizes:
            return new, state._replace(dynamics=after)
        params = params.like(params.flat + bases.rotated(new.flat - inside.flat, turning, back=True))

        fine = after.step > before.step
        grad = torch.where(fine[:, None], grads.flat.detach(), 0.0)
        change = torch.where(before.step > 0, before.gradient_unit / after.gradient_unit, 0.0).detach()
        unit, every = after.gradient_unit.detach(), self.precondition_frequency
        gram, new_basis, is_new = renewed(bases, state.gram, basis, grad, unit, change, after.step, every)
        gram = torch.where(fine[:, None], gram, state.gram)
        moving = (after.averages, after.second, after.momentum, basis)

        def moved() -> tuple[Tensor, ...]:
            turned, second, momentum = in_new_bases(
                bases, basis, new_basis, after.averages.unbind(1), after.second, after.momentum, after.kinetic
            )
            return torch.stack(turned, 1), second, momentum, new_basis

        averages, second, momentum, basis = where_rows(fine & is_new, moved, moving)
        after = after._replace(averages=averages, second=second, momentum=momentum)
        return params, KroneckerState(after, gram, basis)
