"""Bias and spread of the meta-gradient estimators, on a problem with a closed form (`_closed_form.py`).

Gradient descent on a quadratic of three coordinates, the meta-parameter is the logarithm of the learning rate. For each
window length: the mean over an episode's windows of the meta-gradient, relative to the exact one of the whole episode.

python benchmarks/estimator_bias.py --plot docs/images/estimators.png
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _closed_form as closed
import _measure
import torch

from ph_l2o.estimators import ES, NRES, OBJECTIVES, PES, ESSingle, Estimator, Forward, Full, Truncated
from ph_l2o.evaluation.plots import to_png
from ph_l2o.inner import Window

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROWS = (2, 6, 12)  # lengths of the windows in the table
PROBLEMS = 256  # equal problems, each with perturbations of its own


def episode(estimator: Estimator, truncation: int, horizon: int, num_problems: int, number: int) -> list[float]:
    """The meta-gradient of each window."""
    optimizer, phi, problem = closed.optimizer(), closed.phi(), closed.problem(num_problems, number)
    carry, found = estimator.start(optimizer, problem), []
    count = estimator.window_length(truncation, horizon)
    for first in range(0, horizon, count):
        estimate = estimator(Window(optimizer, phi, problem, carry, first, count, OBJECTIVES["mean_loss"]))
        carry = estimate.carry
        found.append(estimate.gradient["log_lr"].item())
    return found


def measured(estimator: Estimator, truncation: int, horizon: int, episodes: int) -> dict[str, float]:
    """Relative bias with its standard error, and relative standard deviations for one antithetic pair."""
    exact = closed.derivative(closed.START, horizon)
    random = not isinstance(estimator, Truncated) and getattr(estimator, "num_directions", 1) is not None
    problems, count = (PROBLEMS, episodes) if random else (1, 1)
    found = torch.tensor(
        [episode(estimator, truncation, horizon, problems, k) for k in range(count)], dtype=torch.float64
    )
    means = found.mean(1) / exact
    deviation = means.std().item() if random else 0.0
    window = found.var(0).mean().sqrt().item() / abs(exact) if random else 0.0
    return {
        "bias": means.mean().item() - 1,
        "error": deviation / count**0.5,
        "deviation": deviation * problems**0.5,
        "window_deviation": window * problems**0.5,
    }


def contestants(sigma: float) -> dict[str, Estimator]:
    """All estimators whose windows may be shorter than an episode."""
    return {
        "truncated": Truncated(),
        "forward": Forward(),
        "forward, 1 direction": Forward(num_directions=1),
        "es": ES(sigma=sigma),
        "pes": PES(sigma=sigma),
        "es_single": ESSingle(sigma=sigma),
        "nres": NRES(sigma=sigma),
    }


def bias(found: dict[str, float]) -> str:
    """In per cent, with its standard error where there is one."""
    value = f"{100 * found['bias'] + 0.0:+.1f} %".replace("-0.0", "+0.0")
    return f"{value} ± {100 * found['error']:.1f}" if found["error"] else value


_LOOKS = {  # colour, line style, width, marker; wide and pale lies under what coincides with it
    "es_single": ("#CC79A7", "solid", 6.0, ""),
    "nres": ("#6A3D9A", (0, (5, 2)), 2.0, ""),
    "forward, 1 direction": ("#000000", (0, (1, 2)), 1.6, ""),
    "pes": ("#E69F00", "solid", 1.8, "s"),
    "es": ("#009E73", "solid", 1.8, "^"),
    "forward": ("#D55E00", "solid", 3.2, "D"),
    "truncated": ("#0072B2", (0, (4, 1.5)), 1.8, "o"),
}


def plot(found: Mapping[tuple[str, int], Mapping[str, float]], horizon: int) -> tuple[Figure, tuple[Axes, Axes]]:
    """Bias, with two standard errors, and the standard deviation of an episode's mean, against the window length."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.2, 3.7), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    lengths = sorted({k for name, k in found if name != "full"})
    for name, (color, style, width, marker) in _LOOKS.items():
        rows = [found[name, k] for k in lengths]
        look = {
            "color": color,
            "linestyle": style,
            "linewidth": width,
            "marker": marker,
            "markersize": 5,
            "label": name,
        }
        if width > 5:
            look["alpha"] = 0.45
        bars = [200 * row["error"] for row in rows]
        left.errorbar(
            lengths,
            [100 * row["bias"] for row in rows],
            yerr=bars if any(bars) else None,
            capsize=2,
            elinewidth=1,
            **look,
        )
        right.plot(lengths, [100 * row["deviation"] for row in rows], **look)
    for axes, key in ((left, "bias"), (right, "deviation")):
        y = 100 * found["full", horizon][key]
        axes.plot(horizon, y, "*", color="#000000", markersize=12, zorder=5, label="full", clip_on=False)
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [str(k) for k in lengths])
        axes.set_xlabel(f"window length in inner steps, of {horizon}")
        axes.grid(visible=True, color="#E3E3E3", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_title("bias, % of the exact gradient", loc="left", fontsize=10)
    right.set_title("standard deviation for one draw, %", loc="left", fontsize=10)
    right.set_ylim(bottom=-4)
    figure.legend(*right.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    return figure, (left, right)


def table(content: Mapping[str, Any], truncations: Sequence[int] = ROWS) -> str:
    """A row for each estimator and each of these window lengths."""
    header = ("estimator", "windows", "bias", "deviation, one window", "deviation, episode")
    lines = [
        (
            f"`{row['estimator']}`", str(content["horizon"] // row["truncation"]), bias(row),
            f"{100 * row['window_deviation']:.0f} %", f"{100 * row['deviation']:.0f} %",
        )
        for row in content["rows"] if row["estimator"] == "full" or row["truncation"] in truncations
    ]  # fmt: skip
    return _measure.table(header, lines)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--horizon", type=int, default=24, help="inner steps of an episode (default: 24)")
    lengths = [1, 2, 3, 4, 6, 8, 12, 24]
    parser.add_argument(
        "--truncations", type=int, nargs="+", default=lengths, help="which divide it (default: 1 2 3 4 6 8 12 24)"
    )
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="of these, in the table (default: 2 6 12)")
    parser.add_argument("--sigma", type=float, default=0.01, help="of the perturbations (default: 0.01)")
    parser.add_argument("--episodes", type=int, default=40, help=f"each of {PROBLEMS} problems (default: 40)")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--plot", type=Path, help="where to write the figure, a PNG")
    given = parser.parse_args()
    if any(k < 1 or given.horizon % k for k in given.truncations):
        parser.error(f"--truncations {given.truncations}: must divide --horizon {given.horizon}")
    return given


def main() -> None:
    """Measure, print a table, write JSON and a figure."""
    given = arguments()
    torch.set_num_threads(1)
    found = {("full", given.horizon): measured(Full(), given.horizon, given.horizon, given.episodes)}
    for truncation in given.truncations:
        for name, estimator in contestants(given.sigma).items():
            found[name, truncation] = measured(estimator, truncation, given.horizon, given.episodes)
    rows = [{"estimator": name, "truncation": k, **f} for (name, k), f in found.items()]
    content = {name: getattr(given, name) for name in ("horizon", "sigma", "episodes")}
    content |= {"problems": PROBLEMS, "rows": rows}
    print(table(content, given.rows))
    _measure.write_json(given.json, content)
    if given.plot is not None:
        given.plot.parent.mkdir(parents=True, exist_ok=True)
        given.plot.write_bytes(to_png(plot(found, given.horizon)[0]))
        print(f"\nwritten to {given.plot}")


if __name__ == "__main__":
    main()
