"""The account of energy: what a step sees of loss and gradient, units, what is in use, what a step costs.

Numbers for each problem, in the arithmetic of `arithmetic.py`. The symbols are those of `diagonal.py`, whose dynamics
they belong to; proofs are in `docs/theory.md`.
"""

from __future__ import annotations

from ph_l2o.port_hamiltonian.arithmetic import Number, PerTensor, arithmetic
from ph_l2o.port_hamiltonian.state import Energies, PortHamiltonianState, Seen

DECAYS = (0.9, 0.99)  # of the gradient's averages
SECOND_DECAY = 0.95  # of the squared gradient's average
LOSS_DECAYS = (0.9, 0.99)
LEAST, _MOST = 1e-36, 1e36  # of units
HEIGHT = 4.0  # φ over f / U: the higher r stands, the less a step takes of it, and the later it brakes
_LEAST_RELATIVE = 1e-4  # f / U
_LEAST_R = 1e-12  # up to it r² is 0, since its square root is differentiated
_LOG_LENGTH = 40.0  # of L, so that neither L nor 1 / L overflows in products
_JUMP = 1e3  # the gradient's unit changes by at most this in a step
_MEMORY = 1000.0  # steps over which the reference of the gradient is averaged
_MOST_REFERENCE = 1e22  # with which the gradient's unit still falls; it bounds what the averages become in that unit


def at_the_start(square: Number, size: Number, budget: float, radius: float) -> tuple[Number, Number, Number]:
    """E₀, κ and R₀ for ‖θ₀‖² and the number of coordinates."""
    rest_radius = rest_radius_for(square, size, radius)
    return rest_radius * 0 + budget, 2 * budget / (rest_radius * rest_radius), rest_radius


def rest_radius_for(square: Number, size: Number, radius: float) -> Number:
    """R₀, half of the ball's radius, for ‖θ‖² and the number of coordinates."""
    xp = arithmetic(square)
    return 0.5 * radius * xp.sqrt(xp.maximum(square, size))


def spring_energy(square: Number, state: PortHamiltonianState) -> Number:
    """V(θ) = ½κ (‖θ‖ - R₀)₊², for ‖θ‖²."""
    xp = arithmetic(square)
    beyond = xp.at_least(_root(square, LEAST) - state.rest_radius, 0.0)
    return 0.5 * state.stiffness * beyond * beyond


def averaging_weight(decay: Number, step: Number, finite: Number = True) -> Number:
    """Weight of the newest of `step` values in their bias-corrected average; 0 where it is left out."""
    return finite * (1 - decay) / (1 - decay**step)


def observe(largest: Number, loss: Number | None, state: PortHamiltonianState) -> Seen:
    """What a step sees, for the largest absolute value of each problem's gradient."""
    xp = arithmetic(largest)
    if loss is None:
        loss, uses_loss = xp.zeros_like(largest), xp.zeros_like(largest)
    else:
        uses_loss = state.uses_loss * (xp.detach(loss) >= 0)
    finite = xp.isfinite(largest) & xp.isfinite(xp.detach(loss))
    uses_loss = xp.where(finite, uses_loss, state.uses_loss)
    loss, largest = xp.where(finite & (uses_loss > 0), loss, 0.0), xp.where(finite, largest, 0.0)
    first = state.step == 0
    unseen = state.second_mean == 0  # of the gradient nothing but zeros
    step = state.step + finite
    # The unit moves where the gradient leaves [unit / 1000, unit], but not so far that old squares overflow.
    old = xp.at_least(xp.where(unseen, largest, state.gradient_unit), LEAST)
    small = (state.second_mean < 1) & (state.reference < _MOST_REFERENCE)
    lower = (largest > 0) & (largest * _JUMP < old) & small
    unit = xp.where(largest > old, xp.minimum(largest, old * _JUMP), xp.where(lower, old / _JUMP, old))
    unit = xp.at_least(unit, LEAST)
    decays = (*DECAYS, SECOND_DECAY, *LOSS_DECAYS)
    weights = xp.for_each(decays, averaging_weight, xp.at_least(step, 1), finite)
    return Seen(
        finite, uses_loss, step, unit, (largest > 0) / xp.maximum(unit, largest), old / unit, weights, loss,
        xp.where(first, loss, state.loss_start),
        xp.lerp(state.loss_fast, loss, weights[3]),
        xp.lerp(state.loss_slow, loss, weights[4]),
    )  # fmt: skip


def compare_gradients(
    second_sum: Number, size: Number, seen: Seen, state: PortHamiltonianState
) -> tuple[Number, Number]:
    """Mean of v over all coordinates, whose sum is given, and its average over the past."""
    xp = arithmetic(second_sum)
    mean = second_sum / size
    weight = seen.finite / xp.clip(seen.step, 1, _MEMORY)
    return mean, xp.lerp(state.reference * seen.change * seen.change, mean, weight)


def energies_before(
    spent: Number, square: Number, seen: Seen, state: PortHamiltonianState, at_rest: Number | float = 0.0
) -> Energies:
    """Units and energies before a step, for Σ h² and ‖θ‖² of each problem.

    What is `at_rest` is kinetic energy of tensors that take no part, which the account has to cover besides.
    """
    xp = arithmetic(spent)
    uses = seen.uses_loss > 0
    now = xp.where(uses, seen.loss, xp.where(spent > 0, spent * seen.gradient_unit, state.loss_unit))
    unit = xp.clip(xp.lerp(state.loss_unit, now, seen.weights[3]), LEAST, _MOST)
    length = xp.exp(xp.clip(xp.log(unit) - xp.log(seen.gradient_unit), -_LOG_LENGTH, _LOG_LENGTH))
    phi = HEIGHT * xp.where(uses, xp.at_least(seen.loss / unit, _LEAST_RELATIVE), 1.0)
    size = _root(square, LEAST)
    beyond = xp.at_least(size - state.rest_radius, 0.0)
    pull = 0.5 * state.stiffness * beyond * beyond
    outside = seen.finite & (pull > state.energy)
    shrink = xp.detach(xp.where(outside, state.radius() / xp.at_least(size, LEAST), 1.0))
    spring = state.stiffness * xp.minimum(beyond, state.radius() - state.rest_radius) / xp.at_least(size, LEAST)
    pull = xp.minimum(pull, state.energy)
    room = xp.at_least(state.energy - pull - at_rest, 0.0)
    # π in the new unit, as far as the account pays.
    rescale = xp.where(state.step > 0, state.loss_unit / unit, 1.0)
    rescale = xp.minimum(rescale, room / xp.at_least(state.kinetic, _LEAST_R))
    rescale = xp.where(seen.finite, rescale, 1.0)
    kinetic = state.kinetic * rescale
    r_squared = xp.minimum(xp.at_most(phi, HEIGHT), room - kinetic)
    r_squared = xp.where(r_squared > _LEAST_R, r_squared, 0.0)
    return Energies(unit, length, phi, _root(rescale, LEAST), kinetic, pull, spring, r_squared, shrink)


def inverse_inertia(
    keep: PerTensor, bound: PerTensor, before: Energies, seen: Seen, state: PortHamiltonianState
) -> PerTensor:
    """1 / a for each tensor, where s² ≤ `bound`."""
    xp = arithmetic(before.length)
    stiffness = xp.per_tensor(0.5 * state.stiffness * before.length)
    return xp.where(xp.per_tensor(seen.finite), keep / (1 + keep * stiffness * bound), 1.0)


def solve_for_r(product: Number, square: Number, before: Energies) -> tuple[Number, Number]:
    """r⁺ / √φ, and Σ 2c² / a, for Σ h b / a and Σ h² / a."""
    xp = arithmetic(product)
    half = 0.5 / before.phi
    share = half / before.length * square
    trust = _root(before.r_squared / before.phi, 0.01 * _LEAST_R) + half * xp.rsqrt(before.length) * product
    return trust / (1 + share), share


def energy_after(
    trust: Number, kinetic: Number, pull: Number, before: Energies, seen: Seen, state: PortHamiltonianState
) -> Number:
    """The account after a step: the share 1/k of what the step released is gone."""
    xp = arithmetic(trust)
    released = before.r_squared + before.kinetic + before.pull - (trust * trust * before.phi + kinetic + pull)
    paid = seen.finite * xp.at_least(released, 0) / xp.at_least(seen.step, 1)
    return xp.at_least(state.energy - paid, 0)


def remember(
    state: PortHamiltonianState,
    seen: Seen,
    before: Energies,
    second_mean: Number,
    reference: Number,
    energy: Number,
    kinetic: Number,
    trust: Number,
    share: Number,
) -> PortHamiltonianState:
    """The next state's numbers; a skipped step changes none but the number of steps skipped."""
    where = arithmetic(energy).where

    def unless_skipped(new: Number, old: Number) -> Number:
        return where(seen.finite, new, old)

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
        skipped=where(seen.finite, state.skipped, state.skipped + 1),
    )


def _root(x: Number, least: float) -> Number:
    """√x, and 0 up to `least`, where its slope is too steep."""
    xp = arithmetic(x)
    return xp.where(x > least, xp.sqrt(xp.at_least(x, least)), 0.0)
