"""Gradient descent on diagonal quadratics: the episode, and what each estimator should find, in closed form.

f(θ) = Σ_j ½ λ_j θ_j², φ = log α, so θ_t = (1 - αλ)^t θ_0 and loss_t = Σ_j ½ λ_j θ_0j² (1 - αλ_j)^2t.
"""

import itertools

import numpy as np
import torch

from ph_l2o.keys import ProblemKeys
from ph_l2o.optimizers import SGD
from ph_l2o.tasks.quadratic import QuadraticProblem

CURVATURE = np.array([0.2, 1.0, 1.6])
START = np.array([1.0, -0.7, 0.5])
LR = 0.1
K, WINDOWS = 3, 3
HORIZON = K * WINDOWS
LOG_LR = float(np.log(LR))


def problem(num_problems: int = 1, episode: int = 0) -> QuadraticProblem:
    """The same problem B times, with keys of its own each."""
    matrix = torch.from_numpy(np.diag(np.sqrt(CURVATURE / 2))).expand(num_problems, -1, -1).contiguous()
    start = torch.from_numpy(START).expand(num_problems, -1).contiguous()
    keys = ProblemKeys(0, "train", episode, range(num_problems))
    return QuadraticProblem(keys, matrix, torch.zeros_like(start), start)


def optimizer() -> SGD:
    return SGD(lr=LR).double()


def phi() -> dict[str, torch.Tensor]:
    return {"log_lr": torch.tensor(LOG_LR, dtype=torch.float64)}


def window_losses(log_lrs, steps: int = K) -> np.ndarray:
    """Mean loss of each window under one log learning rate for each, shape `(len(log_lrs),)`."""
    theta, means = START, []
    for log_lr in log_lrs:
        t = np.arange(1, steps + 1)[:, None]
        losses = 0.5 * CURVATURE * theta**2 * (1 - np.exp(log_lr) * CURVATURE) ** (2 * t)
        means.append(losses.sum(1).mean())
        theta = theta * (1 - np.exp(log_lr) * CURVATURE) ** steps
    return np.array(means)


def derivative(theta: np.ndarray, steps: int) -> float:
    """Of the mean loss over `steps` steps from θ, in log α."""
    t = np.arange(1, steps + 1)[:, None]
    of_loss = -(CURVATURE**2) * LR * theta**2 * t * (1 - LR * CURVATURE) ** (2 * t - 1)
    return of_loss.sum(1).mean()


def full_gradient() -> float:
    return derivative(START, HORIZON)


def truncated_gradients() -> list[float]:
    """Of each window, its start held constant."""
    return [derivative(START * (1 - LR * CURVATURE) ** (w * K), K) for w in range(WINDOWS)]


def jacobian(eps: float = 1e-6) -> np.ndarray:
    """Derivative of window t's mean loss in window s's log learning rate, `(WINDOWS, WINDOWS)`; 0 for s > t."""
    columns = []
    for s in range(WINDOWS):
        step = eps * (np.arange(WINDOWS) == s)
        columns.append((window_losses(LOG_LR + step) - window_losses(LOG_LR - step)) / (2 * eps))
    return np.stack(columns, 1)


def variances() -> dict[str, np.ndarray]:
    """Of each window's estimate from one antithetic pair, as σ → 0.

    With standard normal z_s in window s and g_s the derivative of the window's loss in its φ, the estimate is
    (Σ_s z_s)(Σ_s z_s g_s) for PES, z² Σ_s g_s for one draw, as for one random direction, and z² g_t for ES.
    """
    g = jacobian()
    number = np.arange(1, WINDOWS + 1)
    return {
        "es": 2 * g.diagonal() ** 2,
        "pes": number * (g**2).sum(1) + g.sum(1) ** 2,
        "es_single": 2 * g.sum(1) ** 2,
        "nres": 2 * g.sum(1) ** 2,
        "forward": 2 * g.sum(1) ** 2,
    }


_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(12)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


def smoothed_full(sigma: float) -> float:
    """Gradient of the whole episode's mean loss, smoothed by one perturbation, by Gauss-Hermite quadrature."""
    values = [window_losses([LOG_LR + sigma * z] * WINDOWS).mean() for z in _NODES]
    return float((_WEIGHTS * _NODES * values).sum() / sigma)


def smoothed_per_window(sigma: float) -> float:
    """The same, smoothed by a perturbation of each window's own."""
    total = 0.0
    for at in itertools.product(range(len(_NODES)), repeat=WINDOWS):
        z = _NODES[list(at)]
        total += _WEIGHTS[list(at)].prod() * z.sum() / sigma * window_losses(LOG_LR + sigma * z).mean()
    return total


def smoothed_truncated(sigma: float) -> list[float]:
    """Gradient of each window's mean loss, its start held constant, smoothed."""
    found = []
    for w in range(WINDOWS):
        scale = (1 - LR * CURVATURE) ** (w * K)
        t = np.arange(1, K + 1)[:, None]

        def loss(log_lr: float, scale: np.ndarray = scale, t: np.ndarray = t) -> float:
            rate = np.exp(log_lr) * CURVATURE
            return (0.5 * CURVATURE * (START * scale) ** 2 * (1 - rate) ** (2 * t)).sum(1).mean()

        values = [loss(LOG_LR + sigma * z) for z in _NODES]
        found.append(float((_WEIGHTS * _NODES * values).sum() / sigma))
    return found
