"""The account of energy: what a step sees of loss and gradient, units, what is in use, what a step costs.

Numbers for each problem, `(B,)`. The symbols are those of `ph_l2o/port_hamiltonian/diagonal.py`, whose dynamics they
belong to; proofs are in `docs/theory.md`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ph_l2o.port_hamiltonian import controller

DECAYS = (0.9, 0.99)  # of the gradient's averages
SECOND_DECAY = 0.95  # of the squared gradient's average
LOSS_DECAYS = (0.9, 0.99)
LEAST, _MOST = 1e-36, 1e36  # of units
_LEAST_PHI = 1e-4
_LEAST_R = 1e-12  # up to it r² is 0, since its square root is differentiated
_LOG_LENGTH = 40.0  # of L, so that neither L nor 1 / L overflows in products
_JUMP = 1e3  # the gradient's unit changes by at most this in a step
_MEMORY = 1000.0  # steps over which the reference of the gradient is averaged
_MOST_REFERENCE = 1e22  # with which the gradient's unit still falls; it bounds what the averages become in that unit


class PortHamiltonianState(NamedTuple):
    """What the optimizer remembers. Losses, energies and numbers of steps have shape `(B,)`.

    Attributes:
        step: Steps done, without those skipped.
        averages: Bias-corrected averages of the gradient in its unit, `(B, 2, N)`.
        second: Bias-corrected average of the squared gradient in its unit, `(B, N)`.
        momentum: π, `(B, N)`.
        gradient_unit: G.
        second_mean: Mean of `second`.
        reference: Average of `second_mean` over the past.
        loss_start: First loss.
        loss_fast: Bias-corrected average of the loss, decay .9.
        loss_slow: The same, decay .99.
        loss_unit: U.
        uses_loss: 1 where the loss is used, 0 from the first negative loss on, or where it is hidden.
        energy: The account; it never increases.
        kinetic: ½‖π‖².
        stiffness: κ.
        trust: r⁺ / √φ of the last step.
        share: Decrease of the loss that the last step's force predicts, over 2 f.
        skipped: Steps skipped, because the loss or the gradient was not finite.
    """

    step: Tensor
    averages: Tensor
    second: Tensor
    momentum: Tensor
    gradient_unit: Tensor
    second_mean: Tensor
    reference: Tensor
    loss_start: Tensor
    loss_fast: Tensor
    loss_slow: Tensor
    loss_unit: Tensor
    uses_loss: Tensor
    energy: Tensor
    kinetic: Tensor
    stiffness: Tensor
    trust: Tensor
    share: Tensor
    skipped: Tensor

    def radius(self) -> Tensor:
        """√(2 E / κ), which ‖θ‖ will never exceed from now on, shape `(B,)`."""
        return (2 * self.energy / self.stiffness).sqrt()


class Seen(NamedTuple):
    """What a step sees of loss and gradient, numbers of shape `(B,)`; see `observe`."""

    fine: Tensor  # whether both are finite
    uses_loss: Tensor
    step: Tensor
    gradient_unit: Tensor
    factor: Tensor  # from the gradient to the gradient in its unit
    change: Tensor  # last unit over this one
    weights: Tensor  # of the averages: gradient, squared gradient, loss, `(B, 5)`
    loss: Tensor
    loss_start: Tensor
    loss_fast: Tensor
    loss_slow: Tensor


class Energies(NamedTuple):
    """Before a step, numbers of shape `(B,)`; see `settle`."""

    loss_unit: Tensor
    length: Tensor
    phi: Tensor
    rescale: Tensor  # of π
    kinetic: Tensor
    pull: Tensor  # ½κ‖θ‖²
    r_squared: Tensor
    fit: Tensor  # of θ: 1, or less where rounding has put it outside of the ball


def observe(largest: Tensor, loss: Tensor | None, state: PortHamiltonianState) -> Seen:
    """What a step sees, for the largest absolute value of each problem's gradient, `(B,)`."""
    if loss is None:
        loss, uses_loss = torch.zeros_like(largest), torch.zeros_like(largest)
    else:
        uses_loss = state.uses_loss * (loss.detach() >= 0)
    fine = torch.isfinite(largest) & torch.isfinite(loss.detach())
    uses_loss = torch.where(fine, uses_loss, state.uses_loss)
    loss, largest = torch.where(fine & (uses_loss > 0), loss, 0.0), torch.where(fine, largest, 0.0)
    first = state.step == 0
    step = state.step + fine
    # The unit moves where the gradient leaves [unit / 1000, unit], but not so far that old squares overflow.
    old = torch.where(first, largest, state.gradient_unit).clamp_min(LEAST)
    small = (state.second_mean < 1) & (state.reference < _MOST_REFERENCE)
    lower = (largest > 0) & (largest * _JUMP < old) & small
    unit = torch.where(largest > old, torch.minimum(largest, old * _JUMP), torch.where(lower, old / _JUMP, old))
    unit = unit.clamp_min(LEAST)
    decays = controller.constant((*DECAYS, SECOND_DECAY, *LOSS_DECAYS), step.device, step.dtype)
    weights = fine[:, None] * (1 - decays) / (1 - decays ** step.clamp_min(1)[:, None])
    return Seen(
        fine, uses_loss, step, unit, (largest > 0) / torch.maximum(unit, largest), old / unit, weights, loss,
        torch.where(first, loss, state.loss_start),
        torch.lerp(state.loss_fast, loss, weights[:, 3]),
        torch.lerp(state.loss_slow, loss, weights[:, 4]),
    )  # fmt: skip


def compare_gradients(sums: Tensor, sizes: Tensor, seen: Seen, state: PortHamiltonianState) -> tuple[Tensor, Tensor]:
    """Mean of v over all coordinates, and its average over the past, `(B,)`."""
    mean = sums[:, controller.SECOND].sum(1) / sizes.sum()
    weight = seen.fine / seen.step.clamp(1, _MEMORY)
    return mean, torch.lerp(state.reference * seen.change * seen.change, mean, weight)


def settle(spent: Tensor, square: Tensor, seen: Seen, state: PortHamiltonianState) -> Energies:
    """Units and energies before a step, for Σ h² and ‖θ‖² of each problem."""
    uses = seen.uses_loss > 0
    now = torch.where(uses, seen.loss, spent * seen.gradient_unit)
    unit = torch.lerp(state.loss_unit, now, seen.weights[:, 3]).clamp(LEAST, _MOST)
    length = (unit.log() - seen.gradient_unit.log()).clamp(-_LOG_LENGTH, _LOG_LENGTH).exp()
    phi = torch.where(uses, (seen.loss / unit).clamp_min(_LEAST_PHI), 1.0)
    pull = 0.5 * state.stiffness * square
    fit = torch.where(seen.fine & (pull > state.energy), (state.energy / pull).sqrt(), 1.0).detach()
    pull = torch.minimum(pull, state.energy)
    room = state.energy - pull
    # π in the new unit, as far as the account pays.
    rescale = torch.where(state.step > 0, state.loss_unit / unit, 1.0)
    rescale = torch.minimum(rescale, room / state.kinetic.clamp_min(_LEAST_R))
    rescale = torch.where(seen.fine, rescale, 1.0)
    kinetic = state.kinetic * rescale
    r_squared = torch.minimum(phi.clamp_max(1), room - kinetic)
    r_squared = torch.where(r_squared > _LEAST_R, r_squared, 0.0)
    return Energies(unit, length, phi, _root(rescale, LEAST), kinetic, pull, r_squared, fit)


def damped(keep: Tensor, bound: Tensor, before: Energies, seen: Seen, state: PortHamiltonianState) -> Tensor:
    """1 / a for each tensor, `(B, T)`, where s² ≤ `bound`."""
    stiffness = (state.stiffness * before.length)[:, None]
    return torch.where(seen.fine[:, None], keep / (1 + keep * stiffness * bound), 1.0)


def solve(product: Tensor, square: Tensor, before: Energies) -> tuple[Tensor, Tensor]:
    """r⁺ / √φ, and Σ 2c² / a, for Σ h b / a and Σ h² / a."""
    half = 0.5 / before.phi
    share = half / before.length * square
    trust = _root(before.r_squared / before.phi, 0.01 * _LEAST_R) + half * before.length.rsqrt() * product
    return trust / (1 + share), share


def paid(
    trust: Tensor, kinetic: Tensor, pull: Tensor, before: Energies, seen: Seen, state: PortHamiltonianState
) -> Tensor:
    """The account after a step: the share 1/k of what the step released is gone."""
    released = before.r_squared + before.kinetic + before.pull - (trust * trust * before.phi + kinetic + pull)
    return (state.energy - seen.fine * released.clamp_min(0) / seen.step.clamp_min(1)).clamp_min(0)


def remember(
    state: PortHamiltonianState,
    seen: Seen,
    before: Energies,
    second_mean: Tensor,
    reference: Tensor,
    energy: Tensor,
    kinetic: Tensor,
    trust: Tensor,
    share: Tensor,
) -> PortHamiltonianState:
    """The next state's numbers; a skipped step changes none but the number of steps skipped."""

    def unless_skipped(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(seen.fine, new, old)

    return state._replace(
        step=seen.step,
        gradient_unit=unless_skipped(seen.gradient_unit, state.gradient_unit),
        second_mean=unless_skipped(second_mean, state.second_mean),
        reference=unless_skipped(reference, state.reference),
        loss_start=seen.loss_start,
        loss_fast=seen.loss_fast,
        loss_slow=seen.loss_slow,
        loss_unit=unless_skipped(before.loss_unit, state.loss_unit),
        uses_loss=seen.uses_loss,
        energy=energy,
        kinetic=unless_skipped(kinetic, state.kinetic),
        trust=unless_skipped(trust, state.trust),
        share=unless_skipped(share, state.share),
        skipped=state.skipped + ~seen.fine,
    )


def _root(x: Tensor, least: float) -> Tensor:
    """√x, and 0 up to `least`, where its slope is too steep."""
    return torch.where(x > least, x.clamp_min(least).sqrt(), 0.0)
