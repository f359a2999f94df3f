"""The port-Hamiltonian learned optimizer.

Coordinates θ and momenta π move by a discrete port-Hamiltonian scheme whose energy cannot grow, whatever its
learned ports do; a small network, the controller, sets the ports of each tensor from scale-free statistics. Proofs are
in `docs/theory.md`.

Symbols (code ↔ mathematics):

- `flat`, `momentum` ↔ θ, π; `grad` ↔ g = ∇f(θ), in units of `gradient_unit` ↔ G; `scale` ↔ s > 0
- `loss_unit` ↔ U > 0, the unit of energy, an average of the loss; `length` ↔ L = U / G; `phi` ↔ φ = f / U
- `push` ↔ h = s ĝ with ĝ = (1 - mix) g + mix m; the port of r is c = h / (2 √(φ L))
- `keep` ↔ 1 / (1 + D), D ≥ 0, so that R = diag(D) is positive semidefinite
- `stiffness` ↔ κ > 0 of the spring that ties θ to 0; a = 1 + D + κ L s²_max ≥ 1 + D + κ L s²

One step, with r shared by all coordinates of a problem:

    b  = π - κ √L s θ
    r⁺ = [r + Σ c b / a] / [1 + Σ 2c² / a]
    π⁺ = (b - 2 c r⁺) / a
    θ⁺ = θ + √L s π⁺

It satisfies Δ(r² + ½‖π‖² + ½κ‖θ‖²) ≤ -Σ D (π⁺)² - (Δr)² - ½‖Δπ‖² ≤ 0 for any c, s > 0, D ≥ 0 and κ ≥ 0: J is
skew-symmetric (c and s enter with opposite signs), R ⪰ 0, and the implicit step only dissipates more.

All energies are numbers without units. Before a step π is expressed in the new unit U, and r² is set to min(φ, 1), both
as far as the account `energy` pays (an energy tank: Duindam and Stramigioli 2004; Franken et al. 2011). Of what a
step releases the share 1/k leaves the account for good. So the account never increases, r² + ½‖π‖² + ½κ‖θ‖² never
exceeds it, and ‖θ‖ ≤ √(2 E₀ / κ) for ever.

The scalar auxiliary variable is due to Shen, Xu and Yang 2018 ("The scalar auxiliary variable (SAV) approach for
gradient flows") and, for optimisation, to Liu and Tian 2020 ("AEGD: adaptive gradient descent with energy").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ph_l2o import segments
from ph_l2o.optimizers import controller
from ph_l2o.optimizers.base import LearnedOptimizer
from ph_l2o.params import Layout, Params

DECAYS = (0.9, 0.99)  # of the gradient's averages
SECOND_DECAY = 0.95  # of the squared gradient's average
LOSS_DECAYS = (0.9, 0.99)
TINY = 1e-20  # beside squares of gradients in their unit
LOG_GAIN_RANGE = (-30.0, 8.0)
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


class _Look(NamedTuple):
    """What a step sees, and what the controller makes of it."""

    seen: Seen
    grad: Tensor
    averages: Tensor
    second: Tensor
    sums: Tensor
    sizes: Tensor
    ports: controller.Ports
    second_mean: Tensor
    reference: Tensor


class PortHamiltonian(LearnedOptimizer):
    """Port-Hamiltonian dynamics with a learned per-tensor controller; see the module's text.

    The step scale is s² = gain / √(ρ v + (1 - ρ) v̄) with v the average of the squared gradient, v̄ its mean over the
    tensor and ρ ∈ (0, 1), from one step size for a tensor (ρ = 0) to Adam's (ρ → 1). gain = lr · (v̄ₐ / ref)^{lean / 2}
    follows the gradient's size v̄ₐ relative to its past, from normalised steps (lean = 0) to gradient descent (1). The
    controller gives lr, mix, D, lean and ρ for each tensor in each step. lr is proportional to powers of two natural
    lengths besides, see `Controller`.

    The loss may be missing (None) or hidden; then U is an average of Σ h², the decrease that steps predict.

    Args:
        hidden_size: Width of the controller's two hidden layers, >= 1.
        init_lr: Learning rate of tensors whose entries are of size 1, before meta-training, > 0.
        budget: Energy that the account starts with, in units of the loss, > 0; r² starts at 1.
        radius: ‖θ‖ stays below `radius` · max(‖θ₀‖, √N) · √(1 + 1 / radius²), > 0.
        pace: Two numbers p of a factor exp(p₀) (1 + k/50)^p₁ of lr in step k, see `Controller`.

    Raises:
        ValueError: If an argument is out of range.
    """

    takes_padding: ClassVar[bool] = True

    def __init__(
        self,
        *,
        hidden_size: int = 32,
        init_lr: float = 0.05,
        budget: float = 100.0,
        radius: float = 1000.0,
        pace: Sequence[float] = (0.0, 0.0),
    ):
        super().__init__()
        if hidden_size < 1:
            raise ValueError(f"optimizer.hidden_size={hidden_size}: must be >= 1 (width of the controller)")
        for name, value in (("init_lr", init_lr), ("budget", budget), ("radius", radius)):
            if not 0 < value < math.inf:
                raise ValueError(f"optimizer.{name}={value}: must be > 0 and finite")
        if len(pace) != 2 or not all(map(math.isfinite, pace)):
            raise ValueError(f"optimizer.pace={list(pace)}: must be two finite numbers")
        self.budget, self.radius = budget, radius
        self.controller = controller.Controller(hidden_size, init_lr, pace)

    def init(self, params: Params) -> PortHamiltonianState:
        """Nothing seen yet; see `LearnedOptimizer.init`."""
        flat = params.flat
        zero, none = torch.zeros_like(flat), torch.zeros_like(flat[:, 0])
        energy, stiffness = self.account(_dot(flat, flat), params.layout.table(controller.sizes, flat).sum())
        averages = zero[:, None].repeat(1, len(DECAYS), 1)
        numbers = dict.fromkeys(PortHamiltonianState._fields, none)
        tensors = {"averages": averages, "second": zero, "momentum": zero}
        return PortHamiltonianState(
            **numbers | tensors | {"energy": energy, "stiffness": stiffness, "uses_loss": none + 1}
        )

    def account(self, square: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """E₀ and κ for parameters with ‖θ₀‖² = `square` `(B,)` and `size` coordinates."""
        stiffness = 2 * self.budget / (self.radius**2 * torch.maximum(square, size))
        return self.budget + 0.5 * stiffness * square, stiffness

    def settle(self, spent: Tensor, square: Tensor, seen: Seen, state: PortHamiltonianState) -> Energies:
        """`settle` of this module, which a variant of the energy may replace."""
        return settle(spent, square, seen, state)

    def hide_loss(self, state: PortHamiltonianState, hidden: Tensor) -> PortHamiltonianState:
        """See `LearnedOptimizer.hide_loss`."""
        return state._replace(uses_loss=state.uses_loss.masked_fill(hidden, 0.0))

    def _look(self, params: Params, grads: Params, loss: Tensor | None, state: PortHamiltonianState) -> _Look:
        seen = observe(grads.flat.detach().abs().amax(1), loss, state)
        grad = torch.where(seen.fine[:, None], grads.flat, 0.0) * seen.factor[:, None]
        averages, second = _averaged(state, seen, grad)
        sums = _sums(params.flat, grad, averages, second, state.momentum, params.layout)
        sizes = params.layout.table(controller.sizes, params.flat)
        second_mean, reference = compare_gradients(sums, sizes, seen, state)
        ports = controller.ports(self.controller, sums, sizes, second_mean, reference, seen, state, params.layout)
        return _Look(seen, grad, averages, second, sums, sizes, ports, second_mean, reference)

    def diagnose(
        self, params: Params, grads: Params, loss: Tensor | None, state: PortHamiltonianState
    ) -> dict[str, Tensor]:
        """See `LearnedOptimizer.diagnose`: the account and what is in use of it; the ports of each tensor."""
        ports = self._look(params, grads, loss, state).ports
        spring = 0.5 * state.stiffness * _dot(params.flat, params.flat)
        return {
            "energy": state.energy,
            "kinetic": state.kinetic,
            "spring": spring,
            "tank": state.energy - state.kinetic - spring,
            "trust": state.trust,
            "skipped": state.skipped,
            "lr": ports.log_gain.clamp(*LOG_GAIN_RANGE).exp(),
            "damping": 1 / ports.keep - 1,
            "mix": ports.mix,
            "rho": ports.rho,
            "lean": ports.lean,
        }

    def update(
        self, params: Params, grads: Params, loss: Tensor | None, state: PortHamiltonianState
    ) -> tuple[Params, PortHamiltonianState]:
        """One step of the scheme; see `LearnedOptimizer.update`. A loss of None is a missing one."""
        flat, layout = params.flat, params.layout
        look = self._look(params, grads, loss, state)
        seen, grad, averages, second, sums, sizes, ports = look[:7]

        # By coordinate: s = √gain · (ρ v + (1 - ρ) v̄)^{-1/4}
        floor = (1 - ports.rho) * (sums[:, controller.SECOND] / sizes + TINY)
        gain = ports.log_gain.clamp(*LOG_GAIN_RANGE).exp()
        root, base, rho, mix = layout.expand(torch.stack([gain.sqrt(), floor, ports.rho, ports.mix], 1)).unbind(1)
        scale = root * torch.addcmul(base, rho, second).rsqrt().sqrt()
        push = scale * torch.lerp(grad, averages[:, 0], mix)

        squares = layout.dot(push, push)
        before = self.settle(squares.sum(1), sums[:, controller.THETA].sum(1), seen, state)
        root_length, bound = before.length.sqrt(), gain * floor.rsqrt()
        keep = damped(ports.keep, bound, before, seen, state)
        spring = torch.where(seen.fine, state.stiffness * root_length, 0.0)[:, None]
        shifted = torch.addcmul(state.momentum * before.rescale[:, None], scale * flat, spring, value=-1)
        products = layout.dot(push, shifted)
        trust, share = solve((keep * products).sum(1), (keep * squares).sum(1), before)

        force = torch.where(seen.fine, trust / root_length, 0.0)[:, None]
        momentum = layout.expand(keep) * torch.addcmul(shifted, push, force, value=-1)
        move = torch.where(seen.fine, root_length, 0.0)[:, None]
        new = torch.addcmul(flat * before.fit[:, None], scale * momentum, move)

        kinetic = 0.5 * _dot(momentum, momentum)
        energy = paid(trust, kinetic, 0.5 * state.stiffness * _dot(new, new), before, seen, state)
        after = remember(state, seen, before, look.second_mean, look.reference, energy, kinetic, trust, share)
        return params.like(new), after._replace(averages=averages, second=second, momentum=momentum)


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
    decays = constant((*DECAYS, SECOND_DECAY, *LOSS_DECAYS), step)
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


def constant(values: tuple[float, ...], like: Tensor) -> Tensor:
    """A constant row, made once."""
    return controller.constant(values, like.device, like.dtype)


def _averaged(state: PortHamiltonianState, seen: Seen, grad: Tensor) -> tuple[Tensor, Tensor]:
    change = seen.change[:, None]
    averages = torch.lerp(state.averages * change[..., None], grad[:, None], seen.weights[:, : len(DECAYS), None])
    return averages, torch.lerp(state.second * change * change, grad * grad, seen.weights[:, len(DECAYS), None])


def _sums(flat: Tensor, grad: Tensor, averages: Tensor, second: Tensor, momentum: Tensor, layout: Layout) -> Tensor:
    """Sums over each tensor, `(B, 9, T)`: of squares, of v, and of the products of the gradient."""
    rows = torch.cat([grad[:, None], averages, momentum[:, None], flat[:, None]], 1)
    grad, others = rows[:, :1], rows[:, 1:-1]
    if segments.is_tracing():
        return torch.cat([layout.dot(rows, rows), layout.sum(second[:, None]), layout.dot(grad, others)], 1)
    return layout.sum(torch.cat([rows * rows, second[:, None], grad * others], 1))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)  # a matrix product may be of less precision than the numbers have


def _root(x: Tensor, least: float) -> Tensor:
    """√x, and 0 up to `least`, where its slope is too steep."""
    return torch.where(x > least, x.clamp_min(least).sqrt(), 0.0)
