"""What the structure of the port-Hamiltonian optimizer brings: the same optimizer with parts of it taken away.

All forms have the same controller, that is the same features, network and start, and are trained by the same recipe.
They are the step of `diagonal.py`, in its symbols, with these restrictions:

- `whole`: none; bit for bit `PortHamiltonian`;
- `no_brake`: r² is set to φ, as far as the account pays, without the limit of 4: it does not brake where the loss is
  above its average;
- `ratio`: π is not expressed in the loss's new unit, so that its energy is a share of the loss as that falls;
- `no_account`: r² is set to φ and π expressed in the new unit, whatever that costs, and nothing is paid. The implicit
  step, damping D ≥ 0 and the spring stay, so each step still dissipates; what bounds the energy over steps, and with it
  the ball of θ, is gone;
- `momentum`: r ≡ √φ, and no spring. What is left is momentum with a learned learning rate, force and decay,

      p⁺ = keep (p - h),   θ⁺ = θ + s p⁺,   p = √L π,

  without an energy, an account or an implicit step. The unit U cancels out of it; the controller sees π in it, as ever;
- `adam`: the controller sets lr alone, of θ⁺ = θ - lr m / √(v + ε²), with m and v the bias-corrected averages of the
  gradient (decay .9) and its square (.95), and ε² = 1e-10 of the mean of v. It is `momentum` with ρ = mix = keep = 1 in
  which each step forgets p: m is the only momentum.

In `momentum` and `adam` the trust r⁺ / √φ that the controller sees is 1, since there is no r.

In all of them a step whose gradient or loss is not finite is skipped, and a tensor without a gradient stays. Loss and
gradient can be multiplied by any number, and nothing changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ph_l2o.checks import one_of
from ph_l2o.params import Params
from ph_l2o.port_hamiltonian import energy
from ph_l2o.port_hamiltonian.diagonal import Look, PortHamiltonian
from ph_l2o.port_hamiltonian.state import Energies, PortHamiltonianState, Seen

Structure = Literal["whole", "no_brake", "ratio", "no_account", "momentum", "adam"]
STRUCTURES: tuple[Structure, ...] = ("whole", "no_brake", "ratio", "no_account", "momentum", "adam")
_WITHOUT_R, _WITHOUT_ACCOUNT = ("momentum", "adam"), ("no_account", "momentum", "adam")


class PortHamiltonianAblation(PortHamiltonian):
    """`PortHamiltonian` with parts of its structure taken away; see the module's text.

    Args:
        structure: A name in `STRUCTURES`.
        hidden_size: See `PortHamiltonian`.
        init_lr: See `PortHamiltonian`.
        budget: See `PortHamiltonian`; of no effect in `momentum` and `adam`. In `no_account` it sets the spring alone.
        radius: See `PortHamiltonian`; of no effect in `momentum` and `adam`. In `no_account` it sets the spring alone.
        clock: See `PortHamiltonian`.
        total_steps: See `PortHamiltonian`.
        decay: See `PortHamiltonian`.
        warmup_steps: See `PortHamiltonian`.

    Raises:
        ValueError: If an argument is out of range.
    """

    phi_by_problem: ClassVar[bool] = True

    def __init__(
        self,
        *,
        structure: Structure = "whole",
        hidden_size: int = 32,
        init_lr: float = 0.05,
        budget: float = 100.0,
        radius: float = 1000.0,
        clock: int | None = None,
        total_steps: int | None = None,
        decay: Sequence[float] | None = None,
        warmup_steps: int = 0,
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
        self.structure = one_of("optimizer.structure", structure, STRUCTURES)

    def init(self, params: Params) -> PortHamiltonianState:
        """See `PortHamiltonian.init`; without r there is no spring."""
        state = super().init(params)
        if self.structure in _WITHOUT_R:
            state = state._replace(stiffness=torch.zeros_like(state.stiffness))
        return state

    def update(
        self, params: Params, grads: Params, loss: Tensor | None, state: PortHamiltonianState
    ) -> tuple[Params, PortHamiltonianState]:
        """See `PortHamiltonian.update`; where there is no account, `energy` stays what it was."""
        new, after = super().update(params, grads, loss, state)
        return new, after._replace(energy=state.energy) if self.structure in _WITHOUT_ACCOUNT else after

    def diagnose(
        self, params: Params, grads: Params, loss: Tensor | None, state: PortHamiltonianState
    ) -> dict[str, Tensor]:
        """See `PortHamiltonian.diagnose`; without what the form does not have."""
        gone = {"energy", "tank"} if self.structure in _WITHOUT_ACCOUNT else set()
        gone |= {"spring", "trust"} if self.structure in _WITHOUT_R else set()
        return {k: x for k, x in super().diagnose(params, grads, loss, state).items() if k not in gone}

    def energies_before(self, spent: Tensor, square: Tensor, seen: Seen, state: PortHamiltonianState) -> Energies:
        """What r² and π are set to before a step, and what limits them."""
        before = super().energies_before(spent, square, seen, state)
        if self.structure == "no_brake":
            return before._replace(r_squared=torch.minimum(before.phi, state.energy - before.pull - before.kinetic))
        if self.structure == "ratio":
            kinetic = torch.minimum(state.kinetic, state.energy - before.pull)
            r_squared = torch.minimum(before.phi.clamp_max(energy.HEIGHT), state.energy - before.pull - kinetic)
            return before._replace(rescale=torch.ones_like(before.rescale), kinetic=kinetic, r_squared=r_squared)
        if self.structure in _WITHOUT_ACCOUNT:
            return _unlimited(before, square, seen, state, keeps_momentum=self.structure != "adam")
        return before

    def solve_for_r(self, product: Tensor, square: Tensor, before: Energies) -> tuple[Tensor, Tensor]:
        """r⁺ / √φ, which is 1 without r, and the share, which the controller sees."""
        trust, share = super().solve_for_r(product, square, before)
        return torch.ones_like(trust) if self.structure in _WITHOUT_R else trust, share

    def _look(self, params: Params, grads: Params, loss: Tensor | None, state: PortHamiltonianState) -> Look:
        look = super()._look(params, grads, loss, state)
        if self.structure != "adam":
            return look
        one = torch.ones_like(look.ports.rho)
        return look._replace(ports=look.ports._replace(mix=one, keep=one, rho=one))


def _unlimited(
    before: Energies, square: Tensor, seen: Seen, state: PortHamiltonianState, *, keeps_momentum: bool
) -> Energies:
    """r² = φ, π in the new unit, and the spring, as they are without an account."""
    known = seen.finite & (state.step > 0)
    rescale = torch.where(known, state.loss_unit / before.loss_unit, 1.0)
    if not keeps_momentum:
        rescale = torch.where(seen.finite, 0.0, rescale)
    size = square.clamp_min(energy.LEAST).sqrt()
    beyond = (size - state.rest_radius).clamp_min(0)
    return before._replace(
        rescale=rescale.clamp_min(energy.LEAST).sqrt() * (rescale > 0),
        kinetic=state.kinetic * rescale,
        pull=0.5 * state.stiffness * beyond * beyond,
        spring=state.stiffness * beyond / size,
        r_squared=before.phi,
        shrink=torch.ones_like(before.shrink),
    )
