"""The numbers of a step for one problem: what `update` of the pure optimizer does between its sums over coordinates.

The functions have the names and the meaning of those in `ph_l2o/port_hamiltonian/energy.py` and `controller.py`,
which are for B problems, on tensors, and differentiable. On plain floats they take a tenth of the time, which would be
half of a step; `tests/optim/test_same_steps.py` compares them step by step.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ph_l2o.params import Layout
from ph_l2o.port_hamiltonian import controller
from ph_l2o.port_hamiltonian import energy as account

Array = NDArray[np.float64]


@dataclass(slots=True)
class State:
    """The numbers of `PortHamiltonianState`, which says what they are."""

    step: float = 0.0
    gradient_unit: float = 0.0
    second_mean: float = 0.0
    reference: float = 0.0
    loss_start: float = 0.0
    loss_fast: float = 0.0
    loss_slow: float = 0.0
    loss_unit: float = 0.0
    uses_loss: float = 1.0
    energy: float = 0.0
    kinetic: float = 0.0
    stiffness: float = 0.0
    trust: float = 0.0
    share: float = 0.0
    skipped: float = 0.0

    def radius(self) -> float:
        """√(2 E / κ), which ‖θ‖ will never exceed from now on; NaN before the first step."""
        return math.sqrt(2 * self.energy / self.stiffness) if self.stiffness else math.nan

    def as_dict(self) -> dict[str, float]:
        """By name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


class Seen(NamedTuple):
    """What a step sees of loss and gradient; see `Seen` there."""

    uses_loss: bool
    step: float
    gradient_unit: float
    factor: float
    change: float
    weight: float  # of the loss in `loss_fast` and in the unit
    loss: float
    loss_start: float
    loss_fast: float
    loss_slow: float


class Energies(NamedTuple):
    """Before a step; see `Energies` there."""

    loss_unit: float
    length: float
    phi: float
    rescale: float
    kinetic: float
    pull: float
    r_squared: float
    fit: float


def observe(largest: float, loss: float | None, state: State) -> Seen | None:
    """What a step sees, for the largest absolute value of the gradient; None if it must be skipped."""
    if not (math.isfinite(largest) and (loss is None or math.isfinite(loss))):
        return None
    uses_loss = loss is not None and loss >= 0 and state.uses_loss > 0
    loss = loss if uses_loss and loss is not None else 0.0
    first, step = state.step == 0, state.step + 1
    old = max(largest if first else state.gradient_unit, account.LEAST)
    unit = old
    if largest > old:
        unit = min(largest, old * account._JUMP)
    elif 0 < largest * account._JUMP < old and state.second_mean < 1 and state.reference < account._MOST_REFERENCE:
        unit = max(old / account._JUMP, account.LEAST)
    fast, slow = ((1 - d) / (1 - d**step) for d in account.LOSS_DECAYS)
    return Seen(
        uses_loss, step, unit, 1 / max(unit, largest), old / unit, fast, loss,
        loss if first else state.loss_start,
        state.loss_fast + fast * (loss - state.loss_fast),
        state.loss_slow + slow * (loss - state.loss_slow),
    )  # fmt: skip


def compare_gradients(sums: Array, sizes: Array, seen: Seen, state: State) -> tuple[float, float]:
    """Mean of v over all coordinates, and its average over the past."""
    mean = float(sums[:, controller.SECOND].sum() / sizes.sum())
    weight = 1 / min(max(seen.step, 1), account._MEMORY)
    before = state.reference * seen.change * seen.change
    return mean, before + weight * (mean - before)


class Controller:
    """The learned controller for one problem, of constant weights.

    Args:
        network: Where the weights come from.
    """

    def __init__(self, network: controller.Controller):
        values = {name: x.detach().double().cpu().numpy() for name, x in network.state_dict().items()}
        self.layers = [(values[f"{k}.weight"].T, values[f"{k}.bias"]) for k in (0, 2, 4)]
        self.powers, self.pace = values["powers"].tolist(), network.pace.tolist()

    def ports(
        self, sums: Array, mean: float, reference: float, seen: Seen, state: State, layout: Layout
    ) -> tuple[Array, ...]:
        """The ports log_gain, mix, keep, rho and lean of each tensor, `(T,)`, for sums over tensors, `(T, 9)`."""
        sizes, static = _tables(layout)
        means, log_mean = sums / sizes[:, None], math.log(mean + controller._TINY)
        log_growth = log_mean - math.log(reference + controller._TINY)
        length = _natural_length(log_mean, layout.numel, seen)
        x = np.empty((len(sums), controller.NUM_FEATURES))
        logs = _of_tensors(means, log_mean, layout.numel, x)
        x[:, 9:22] = _of_problem(length, log_growth, layout.numel, seen, state)
        x[:, 22:] = static
        for weight, bias in self.layers[:-1]:
            x = np.tanh(x @ weight + bias)
        weight, bias = self.layers[-1]
        out = x @ weight + bias
        mix, keep, lean, rho = _sigmoid(out[:, 1:].T)
        log_theta = np.maximum(0.5 * logs[:, controller.THETA], math.log(controller._LEAST_THETA))
        pace = self.pace[0] + self.pace[1] * math.log1p(min(seen.step, controller.MOST_PACE) / controller.PACE)
        log_lr = out[:, 0] + self.powers[0] * length + pace + self.powers[1] * log_theta
        return log_lr + 0.5 * lean * log_growth, mix, keep, controller._MOST_RHO * rho, lean


def settle(spent: float, square: float, seen: Seen, state: State) -> Energies:
    """Units and energies before a step, for Σ h² and ‖θ‖²."""
    now = seen.loss if seen.uses_loss else spent * seen.gradient_unit
    unit = min(max(state.loss_unit + seen.weight * (now - state.loss_unit), account.LEAST), account._MOST)
    most = account._LOG_LENGTH
    length = math.exp(min(max(math.log(unit) - math.log(seen.gradient_unit), -most), most))
    phi = max(seen.loss / unit, account._LEAST_PHI) if seen.uses_loss else 1.0
    pull = 0.5 * state.stiffness * square
    fit = math.sqrt(state.energy / pull) if pull > state.energy else 1.0
    pull = min(pull, state.energy)
    room = state.energy - pull
    # π in the new unit, as far as the account pays.
    rescale = state.loss_unit / unit if state.step > 0 else 1.0
    rescale = min(rescale, room / max(state.kinetic, account._LEAST_R))
    kinetic = state.kinetic * rescale
    r_squared = min(phi, 1.0, room - kinetic)
    r_squared = r_squared if r_squared > account._LEAST_R else 0.0
    return Energies(unit, length, phi, _root(rescale, account.LEAST), kinetic, pull, r_squared, fit)


def solve(product: float, square: float, before: Energies) -> tuple[float, float]:
    """r⁺ / √φ, and Σ 2c² / a, for Σ h b / a and Σ h² / a."""
    half = 0.5 / before.phi
    share = half / before.length * square
    trust = _root(before.r_squared / before.phi, 0.01 * account._LEAST_R) + half * product / math.sqrt(before.length)
    return trust / (1 + share), share


def paid(trust: float, kinetic: float, pull: float, before: Energies, seen: Seen, state: State) -> float:
    """The account after a step: the share 1/k of what the step released is gone."""
    released = before.r_squared + before.kinetic + before.pull - (trust * trust * before.phi + kinetic + pull)
    return max(state.energy - max(released, 0.0) / seen.step, 0.0)


def _of_tensors(means: Array, log_mean: float, size: int, out: Array) -> Array:
    """The first 9 features of each tensor; logs of the mean squares, `(T, 6)`."""
    logs = np.log(means[:, : controller.SECOND + 1] + controller._TINY)
    grad, second = logs[:, :1], logs[:, controller.SECOND :]
    out[:, :2] = 0.25 * (logs[:, 1 : controller.MOMENTUM] - second)
    out[:, 2:3] = 0.5 * (grad - second)
    out[:, 3:4] = 0.2 * (second - log_mean)
    out[:, 4] = 0.2 * np.maximum(logs[:, controller.MOMENTUM] + math.log(size), -20)
    out[:, 5] = 0.3 * np.maximum(logs[:, controller.THETA], -20)
    out[:, 6:9] = means[:, controller.SECOND + 1 :] * np.exp(-0.5 * (grad + logs[:, 1 : controller.THETA]))
    return logs


def _natural_length(log_mean: float, size: int, seen: Seen) -> float:
    if not seen.uses_loss:
        return 0.0
    log_unit = math.log(max(seen.loss_fast, controller._LEAST_LOSS)) - math.log(seen.gradient_unit)
    return min(max(log_unit - math.log(size) - 0.5 * log_mean + controller._TYPICAL_LENGTH, -10), 10)


def _of_problem(length: float, log_growth: float, size: int, seen: Seen, state: State) -> list[float]:
    """13 features that all tensors have in common."""
    losses = (seen.loss, seen.loss_fast, seen.loss_slow, seen.loss_start)
    loss, fast, slow, start = (math.log(max(x, controller._LEAST_LOSS)) for x in losses)
    used = float(seen.uses_loss)
    return [
        0.25 * log_growth,
        used * 0.3 * min(max(loss - fast, -20), 20),
        used * 0.3 * min(max(fast - slow, -20), 20),
        used * 0.3 * min(max(loss - start, -30), 30),
        used,
        0.3 * length,
        state.trust,
        0.3 * math.log(state.share + controller._LEAST_SHARE),
        0.3 * math.log(seen.step),
        0.2 * math.log(size),
        *(math.tanh(seen.step / scale - 1) for scale in controller._TIME_SCALES),
    ]


@lru_cache(maxsize=64)
def _tables(layout: Layout) -> tuple[Array, Array]:
    """Sizes `(T,)` and constant features `(T, 5)` of tensors."""
    return np.array(layout.sizes, dtype=np.float64), np.array(controller.static_features(layout))


def _sigmoid(x: Array) -> Array:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1 + small)


def _root(x: float, least: float) -> float:
    """√x, and 0 up to `least`."""
    return math.sqrt(x) if x > least else 0.0
