"""What the optimizer remembers, what a step sees, and its energies before it.

A number of a problem is a tensor `(B,)` in the pure optimizer and a float in the step in place (`arithmetic.py`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ph_l2o.port_hamiltonian.arithmetic import Number, arithmetic

# Sums over a tensor: squares of gradient, its two averages, momentum, parameters; v; products of the gradient.
GRADIENT, MOMENTUM, THETA, SECOND = 0, 3, 4, 5


class PortHamiltonianState(NamedTuple):
    """What the optimizer remembers. The step in place keeps `averages`, `second` and `momentum` with each parameter.

    Attributes:
        step: Steps done, without those skipped.
        total_steps: Steps of the run, 0 where nobody knows. The step in place is told by its group.
        averages: Bias-corrected averages of the gradient in its unit, `(B, 2, N)`.
        second: Bias-corrected average of the squared gradient in its unit, `(B, N)`.
        momentum: π, `(B, N)`.
        start_squares: Squares of θ at the start, `(B, N)`; of them lr sees sums over tensors.
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
        rest_radius: R₀; where ‖θ‖ is less, the spring is at rest.
        trust: r⁺ / √φ of the last step.
        share: Decrease of the loss that the last step's force predicts, over 2 f.
        skipped: Steps skipped, because the loss or the gradient was not finite.
    """

    step: Number
    total_steps: Number
    averages: Any
    second: Any
    momentum: Any
    start_squares: Any
    gradient_unit: Number
    second_mean: Number
    reference: Number
    loss_start: Number
    loss_fast: Number
    loss_slow: Number
    loss_unit: Number
    uses_loss: Number
    energy: Number
    kinetic: Number
    stiffness: Number
    rest_radius: Number
    trust: Number
    share: Number
    skipped: Number

    def radius(self) -> Number:
        """R₀ + √(2 E / κ), which ‖θ‖ will never exceed from now on."""
        return self.rest_radius + arithmetic(self.energy).sqrt(2 * self.energy / self.stiffness)


class Seen(NamedTuple):
    """What a step sees of loss and gradient; see `observe`."""

    finite: Any  # whether both are
    uses_loss: Number
    step: Number
    gradient_unit: Number
    factor: Number  # from the gradient to the gradient in its unit
    change: Number  # last unit over this one
    weights: Any  # of the averages: two of the gradient, of its square, two of the loss; `(5, B)`
    loss: Number
    loss_start: Number
    loss_fast: Number
    loss_slow: Number


class Energies(NamedTuple):
    """Before a step; see `energies_before`."""

    loss_unit: Number
    length: Number
    phi: Number
    rescale: Number  # of π
    kinetic: Number
    pull: Number  # V(θ) = ½κ (‖θ‖ - R₀)₊²
    spring: Number  # ∇V(θ) over θ
    r_squared: Number
    shrink: Number  # of θ: 1, or less where rounding has put it outside of the ball
