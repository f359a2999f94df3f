"""The port-Hamiltonian learned optimizer.

Coordinates θ and momenta π move by a discrete port-Hamiltonian scheme whose energy cannot grow, whatever its
learned ports do; a small network, the controller, sets the ports of each tensor from scale-free statistics. Proofs are
in `docs/theory.md`.

Symbols (code ↔ mathematics):

- `flat`, `momentum` ↔ θ, π; `grad` ↔ g = ∇f(θ), in units of `gradient_unit` ↔ G; `scale` ↔ s > 0
- `loss_unit` ↔ U > 0, the unit of energy, an average of the loss; `length` ↔ L = U / G; `phi` ↔ φ = 4 f / U
- `push` ↔ h = s ĝ with ĝ = (1 - mix) g + mix m; the port of r is c = h / (2 √(φ L))
- `keep` ↔ 1 / (1 + D), D ≥ 0, so that R = diag(D) is positive semidefinite
- `stiffness` ↔ κ > 0, `rest_radius` ↔ R₀ of the spring V(θ) = ½κ (‖θ‖ - R₀)₊², which is felt outside of R₀ only;
  a = 1 + D + ½κ L s²_max ≥ 1 + D + ½κ L s²

One step, with r shared by all coordinates of a problem:

    b  = π - √L s ∇V(θ)
    r⁺ = [r + Σ c b / a] / [1 + Σ 2c² / a]
    π⁺ = (b - 2 c r⁺) / a
    θ⁺ = θ + √L s π⁺

It satisfies Δ(r² + ½‖π‖² + V(θ)) ≤ -Σ D (π⁺)² - (Δr)² - ½‖Δπ‖² ≤ 0 for any c, s ≥ 0, D ≥ 0 and κ ≥ 0: J is
skew-symmetric (c and s enter with opposite signs), R ⪰ 0, and the implicit step only dissipates more.

All energies are numbers without units. Before a step π is expressed in the new unit U, and r² is set to min(φ, 4), both
as far as the account `energy` pays (an energy tank: Duindam and Stramigioli 2004; Franken et al. 2011). Of what a
step releases the share 1/k leaves the account for good. So the account never increases, r² + ½‖π‖² + V(θ) never
exceeds it, and ‖θ‖ ≤ R₀ + √(2 E₀ / κ) for ever. A tensor whose gradient is 0 has s = 0: it stays as it is.

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
from ph_l2o.checks import at_least
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.params import Layout, Params
from ph_l2o.port_hamiltonian import controller, energy, schedule
from ph_l2o.port_hamiltonian.state import GRADIENT, SECOND, THETA, Energies, PortHamiltonianState, Seen


class Look(NamedTuple):
    """What a step sees, and what the controller makes of it."""

    seen: Seen
    grad: Tensor
    averages: Tensor
    second: Tensor
    sums: Tensor
    sizes: Tensor
    second_mean: Tensor
    reference: Tensor
    ports: controller.Ports


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
        budget: Energy that the account starts with, in units of the loss, > 0; r² starts at 4, or at all of it.
        radius: ‖θ‖ stays below `radius` · max(‖θ₀‖, √N), >= 2.
        clock: The number of a step, >= 1, that the controller sees in place of all numbers of steps, so that what it
            does depends on what it meets and not on the time; None: it sees these, for horizons as in training.
        total_steps: Steps of a run, >= 1, over which gain first rises, then falls to 0, see `schedule.py`; None: it
            does not.
        decay: Two numbers (K, p), > 0: without `total_steps` gain falls as (1 + k/K)^-p; None: it does not.
        warmup_steps: Steps, >= 0, over which gain first rises without `total_steps`.

    Raises:
        ValueError: If an argument is out of range.
    """

    takes_padding: ClassVar[bool] = True
    phi_by_problem: ClassVar[bool] = True

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
    ):
        super().__init__()
        if hidden_size < 1:
            raise ValueError(f"optimizer.hidden_size={hidden_size}: must be >= 1 (width of the controller)")
        for name, value in (("init_lr", init_lr), ("budget", budget)):
            if not 0 < value < math.inf:
                raise ValueError(f"optimizer.{name}={value}: must be > 0 and finite")
        if not 2 <= radius < math.inf:
            raise ValueError(f"optimizer.radius={radius}: must be >= 2 and finite; half of it is free of the spring")
        for name, count in (("clock", clock), ("total_steps", total_steps)):
            if count is not None:
                at_least(f"optimizer.{name}", count, 1, "steps, or null")
        if decay is not None and not (len(decay) == 2 and all(0 < x < math.inf for x in decay)):
            raise ValueError(f"optimizer.decay={list(decay)}: must be two finite numbers > 0, steps and power, or null")
        self.budget, self.radius, self.total_steps = budget, radius, total_steps
        at_least("optimizer.warmup_steps", warmup_steps, 0, "steps")
        self.anytime = schedule.Anytime(warmup_steps, None if decay is None else (float(decay[0]), float(decay[1])))
        self.controller = controller.Controller(hidden_size, init_lr, clock)

    def init(self, params: Params) -> PortHamiltonianState:
        """Nothing seen yet; see `LearnedOptimizer.init`."""
        flat = params.flat
        zero, none = torch.zeros_like(flat), torch.zeros_like(flat[:, 0])
        size = params.layout.table(controller.tensor_sizes, flat).sum()
        account, stiffness, rest = energy.at_the_start(_dot(flat, flat), size, self.budget, self.radius)
        averages = zero[:, None].repeat(1, len(energy.DECAYS), 1)
        numbers = dict.fromkeys(PortHamiltonianState._fields, none)
        tensors = {"averages": averages, "second": zero, "momentum": zero, "start_squares": flat * flat}
        springs = {"energy": account, "stiffness": stiffness, "rest_radius": rest}
        return PortHamiltonianState(
            **numbers | tensors | springs | {"uses_loss": none + 1, "total_steps": none + (self.total_steps or 0)}
        )

    def energies_before(self, spent: Tensor, square: Tensor, seen: Seen, state: PortHamiltonianState) -> Energies:
        """`energies_before` of the account, which a variant of the energy may replace."""
        return energy.energies_before(spent, square, seen, state)

    def solve_for_r(self, product: Tensor, square: Tensor, before: Energies) -> tuple[Tensor, Tensor]:
        """`solve_for_r` of the energy, which a variant may replace."""
        return energy.solve_for_r(product, square, before)

    def hide_loss(self, state: PortHamiltonianState, hidden: Tensor) -> PortHamiltonianState:
        """See `LearnedOptimizer.hide_loss`."""
        return state._replace(uses_loss=state.uses_loss.masked_fill(hidden, 0.0))

    def _look(self, params: Params, grads: Params, loss: Tensor | None, state: PortHamiltonianState) -> Look:
        seen = energy.observe(grads.flat.detach().abs().amax(1), loss, state)
        grad = torch.where(seen.finite[:, None], grads.flat, 0.0) * seen.factor[:, None]
        averages, second = _averaged(state, seen, grad)
        sums = _sums(params.flat, grad, averages, second, state.momentum, params.layout)
        sizes = params.layout.table(controller.tensor_sizes, params.flat)
        second_mean, reference = energy.compare_gradients(sums[:, SECOND].sum(1), sizes.sum(), seen, state)
        starts = params.layout.sum(state.start_squares[:, None])[:, 0]
        ports = controller.ports(
            self.controller, sums, starts, sizes, second_mean, reference, seen, state, params.layout
        )
        return Look(seen, grad, averages, second, sums, sizes, second_mean, reference, ports)

    def tell_steps(self, state: PortHamiltonianState, total_steps: Tensor) -> PortHamiltonianState:
        """See `LearnedOptimizer.tell_steps`."""
        return state._replace(total_steps=total_steps.to(state.total_steps))

    def _rate(self, look: Look, state: PortHamiltonianState) -> Tensor:
        """Factor of each tensor's gain, `(B, T)`: the schedule's, and 0 where there is no gradient."""
        rate = (look.sums[:, GRADIENT].detach() > 0).to(look.grad)
        step = look.seen.step.clamp_min(1)
        return rate * schedule.factor(step, state.total_steps, self.anytime)[:, None]

    def diagnose(
        self, params: Params, grads: Params, loss: Tensor | None, state: PortHamiltonianState
    ) -> dict[str, Tensor]:
        """See `LearnedOptimizer.diagnose`: the account and what is in use of it; the ports of each tensor."""
        look = self._look(params, grads, loss, state)
        spring = energy.spring_energy(_dot(params.flat, params.flat), state)
        gain, _ = look.ports.scale(look.sums[:, SECOND] / look.sizes, look.second_mean[:, None])
        return {
            "energy": state.energy,
            "kinetic": state.kinetic,
            "spring": spring,
            "tank": state.energy - state.kinetic - spring,
            "trust": state.trust,
            "skipped": state.skipped,
            **look.ports.by_name(gain * self._rate(look, state)),
        }

    def update(
        self, params: Params, grads: Params, loss: Tensor | None, state: PortHamiltonianState
    ) -> tuple[Params, PortHamiltonianState]:
        """One step of the scheme; see `LearnedOptimizer.update`. A loss of None is a missing one."""
        flat, layout = params.flat, params.layout
        look = self._look(params, grads, loss, state)
        seen, grad, averages, second, sums, sizes, second_mean, reference, ports = look

        # By coordinate: s = √gain · (ρ v + (1 - ρ) v̄)^{-1/4}
        gain, floor = ports.scale(sums[:, SECOND] / sizes, second_mean[:, None])
        rate = self._rate(look, state)
        root = gain.sqrt() * rate.sqrt()  # the rate may be 0, where a root of the product has no derivative
        root, base, rho, mix = layout.expand(torch.stack([root, floor, ports.rho, ports.mix], 1)).unbind(1)
        scale = root * torch.addcmul(base, rho, second).rsqrt().sqrt()
        push = scale * torch.lerp(grad, averages[:, 0], mix)

        squares = layout.dot(push, push)
        before = self.energies_before(squares.sum(1), sums[:, THETA].sum(1), seen, state)
        root_length = before.length.sqrt()
        keep = energy.inverse_inertia(ports.keep, gain * rate * floor.rsqrt(), before, seen, state)
        spring = torch.where(seen.finite, before.spring * root_length, 0.0)[:, None]
        shifted = torch.addcmul(state.momentum * before.rescale[:, None], scale * flat, spring, value=-1)
        products = layout.dot(push, shifted)
        trust, share = self.solve_for_r((keep * products).sum(1), (keep * squares).sum(1), before)

        force = torch.where(seen.finite, trust / root_length, 0.0)[:, None]
        momentum = layout.expand(keep) * torch.addcmul(shifted, push, force, value=-1)
        move = torch.where(seen.finite, root_length, 0.0)[:, None]
        new = torch.addcmul(flat * before.shrink[:, None], scale * momentum, move)

        kinetic = 0.5 * _dot(momentum, momentum)
        account = energy.energy_after(trust, kinetic, energy.spring_energy(_dot(new, new), state), before, seen, state)
        after = energy.remember(state, seen, before, second_mean, reference, account, kinetic, trust, share)
        return params.like(new), after._replace(averages=averages, second=second, momentum=momentum)


def _averaged(state: PortHamiltonianState, seen: Seen, grad: Tensor) -> tuple[Tensor, Tensor]:
    change, weights = seen.change[:, None], seen.weights.mT
    averages = torch.lerp(state.averages * change[..., None], grad[:, None], weights[:, : len(energy.DECAYS), None])
    return averages, torch.lerp(state.second * change * change, grad * grad, weights[:, len(energy.DECAYS), None])


def _sums(flat: Tensor, grad: Tensor, averages: Tensor, second: Tensor, momentum: Tensor, layout: Layout) -> Tensor:
    """Sums over each tensor, `(B, 9, T)`: of squares, of v, and of the products of the gradient."""
    rows = torch.cat([grad[:, None], averages, momentum[:, None], flat[:, None]], 1)
    grad, others = rows[:, :1], rows[:, 1:-1]
    if segments.is_tracing():
        return torch.cat([layout.dot(rows, rows), layout.sum(second[:, None]), layout.dot(grad, others)], 1)
    return layout.sum(torch.cat([rows * rows, second[:, None], grad * others], 1))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)  # a matrix product may be of less precision than the numbers have
