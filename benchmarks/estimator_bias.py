"""Bias and spread of the meta-gradient estimators, on a problem with a closed form (`_closed_form.py`).

Gradient descent on a quadratic of three coordinates, the meta-parameter is the logarithm of the learning rate. For each
window length: the mean over an episode's windows of the meta-gradient, relative to the exact one of the whole episode.

python benchmarks/estimator_bias.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import _closed_form as closed
import _measure
import torch

from ph_l2o.estimators import ES, NRES, OBJECTIVES, PES, ESSingle, Estimator, Full, Truncated

PROBLEMS = 256  # equal problems, each with perturbations of its own


def episode(estimator: Estimator, horizon: int, num_problems: int, number: int) -> list[float]:
    """The meta-gradient of each window."""
    optimizer, phi, problem = closed.optimizer(), closed.phi(), closed.problem(num_problems, number)
    carry, found = estimator.start(optimizer, problem), []
    for first in range(0, horizon, estimator.truncation):
        estimate = estimator(optimizer, phi, problem, carry, first, OBJECTIVES["mean_loss"])
        carry = estimate.carry
        found.append(estimate.gradient["log_lr"].item())
    return found


def measured(estimator: Estimator, horizon: int, episodes: int) -> dict[str, float]:
    """Relative bias with its standard error, and relative standard deviations for one antithetic pair."""
    exact = closed.derivative(closed.START, horizon)
    random = not isinstance(estimator, Truncated)
    problems, count = (PROBLEMS, episodes) if random else (1, 1)
    found = torch.tensor([episode(estimator, horizon, problems, k) for k in range(count)], dtype=torch.float64)
    means = found.mean(1) / exact
    deviation = means.std().item() if random else 0.0
    window = found.var(0).mean().sqrt().item() / abs(exact) if random else 0.0
    return {
        "bias": means.mean().item() - 1,
        "error": deviation / count**0.5,
        "deviation": deviation * problems**0.5,
        "window_deviation": window * problems**0.5,
    }


def contestants(truncation: int, sigma: float) -> dict[str, Estimator]:
    """All estimators with windows of one length."""
    return {
        "truncated": Truncated(truncation),
        "es": ES(truncation, sigma=sigma),
        "pes": PES(truncation, sigma=sigma),
        "es_single": ESSingle(truncation, sigma=sigma),
        "nres": NRES(truncation, sigma=sigma),
    }


def bias(found: dict[str, float]) -> str:
    """In per cent, with its standard error where there is one."""
    value = f"{100 * found['bias'] + 0.0:+.1f} %".replace("-0.0", "+0.0")
    return f"{value} ± {100 * found['error']:.1f}" if found["error"] else value


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--horizon", type=int, default=24, help="inner steps of an episode (default: 24)")
    parser.add_argument(
        "--truncations", type=int, nargs="+", default=[2, 6, 12], help="which divide it (default: 2 6 12)"
    )
    parser.add_argument("--sigma", type=float, default=0.01, help="of the perturbations (default: 0.01)")
    parser.add_argument("--episodes", type=int, default=40, help=f"each of {PROBLEMS} problems (default: 40)")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    arguments = parser.parse_args()
    if any(k < 1 or arguments.horizon % k for k in arguments.truncations):
        parser.error(f"--truncations {arguments.truncations}: must divide --horizon {arguments.horizon}")
    torch.set_num_threads(1)

    found = {("full", arguments.horizon): measured(Full(arguments.horizon), arguments.horizon, arguments.episodes)}
    for truncation in arguments.truncations:
        for name, estimator in contestants(truncation, arguments.sigma).items():
            found[name, truncation] = measured(estimator, arguments.horizon, arguments.episodes)
    rows = [
        (
            f"`{name}`", str(arguments.horizon // truncation), bias(f),
            f"{100 * f['window_deviation']:.0f} %", f"{100 * f['deviation']:.0f} %",
        )
        for (name, truncation), f in found.items()
    ]  # fmt: skip
    print(_measure.table(("estimator", "windows", "bias", "deviation, one window", "deviation, episode"), rows))
    _measure.write_json(
        arguments.json,
        {
            "horizon": arguments.horizon,
            "sigma": arguments.sigma,
            "rows": [{"estimator": name, "truncation": k, **f} for (name, k), f in found.items()],
        },
    )


if __name__ == "__main__":
    main()
