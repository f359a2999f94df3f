"""Comparisons on one task, from their result files: tables, and where the learned optimizers lose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import _measure
from _made import Content, Files, made
from results import interval, markdown

Row = Mapping[str, Any]


class Weights(NamedTuple):
    """Whose comparisons have files of one prefix."""

    title: str
    trained: str  # how, on quadratics and on MNIST
    argument: str  # of results.py


WEIGHTS = {
    "": Weights(
        "Plain form, trained on {}", "`python train.py optimizer=port_hamiltonian task={}`", "runs/…/best.ckpt"
    ),
    "kronecker_": Weights(
        "Kronecker-factored form, trained on {}",
        "`python train.py optimizer=port_hamiltonian_kronecker task={}`",
        "runs/…/best.ckpt --prefix kronecker_",
    ),
    "shipped_": Weights("Shipped weights", "not trained on this task alone", "kronecker default --prefix shipped_"),
}


def quadratics(files: Files) -> list[str]:
    """A table for each file."""
    parts = []
    for prefix, weights in WEIGHTS.items():
        for content in _of(files, f"{prefix}quadratic_"):
            parts += [
                f"### {weights.title.format('quadratics')}, {content['horizon']:,} steps",
                f"Weights: {weights.trained.format('quadratic')}. {content['num_problems']:,} test problems of 10 "
                "coordinates, from θ₀ ~ N(0, I). Losses are those after the last step; last 10 and all are means over "
                "steps. Differences are paired, the first optimizer's loss minus that of the row [95 %].",
                made([content], f"python benchmarks/results.py --quadratic {weights.argument}"),
                markdown(content["rows"]),
                f"**Where it loses**: {lost(content['rows'], 'final')}.",
            ]
    return parts


def mnist(files: Files) -> list[str]:
    """Tables whose columns are networks: losses, paired differences, and loss on test images."""
    parts = []
    for prefix, weights in WEIGHTS.items():
        groups: dict[tuple[int, int, bool], list[Content]] = {}
        for content in _of(files, f"{prefix}mnist_"):
            key = (content["horizon"], content["num_problems"], _task(content)["hidden_sizes"] == [20])
            groups.setdefault(key, []).append(content)
        for (horizon, problems, usual), found in groups.items():
            parts += [
                f"### {weights.title.format('MNIST')}, {horizon:,} steps{'' if usual else ', other networks'}",
                f"Weights: {weights.trained.format('mnist')}. {problems} test problems of each network, on images that "
                f"meta-training never saw; mini-batches of {_task(found[0])['batch_size']}.",
                made(found, f"python benchmarks/results.py --mnist {weights.argument} --horizon {horizon}"),
                *_across(found),
                "**Where it loses**, by the last 10 steps:\n",
                "\n".join(f"- {_network(content)}: {lost(content['rows'], 'last10')}." for content in found),
            ]
    return parts


def _of(files: Files, start: str) -> list[Content]:
    return sorted((c for name, c in files.items() if name.startswith(start)), key=lambda c: c["horizon"])


def _task(content: Content) -> Mapping[str, Any]:
    return content["config"]["task"]


def _network(content: Content) -> str:
    sizes = _task(content)["hidden_sizes"]
    return ", ".join([*_task(content)["activation"], *(["-".join(map(str, sizes))] if sizes != [20] else [])])


def _across(contents: Sequence[Content]) -> list[str]:
    """Tables with a column for each network, of the optimizers that all of them have."""
    everywhere = set.intersection(*({row["optimizer"] for row in content["rows"]} for content in contents))
    by_name = [
        {row["optimizer"]: row for row in content["rows"] if row["optimizer"] in everywhere} for content in contents
    ]
    columns = [_network(content) for content in contents]

    def table(title: str, cell: Callable[[Row], str]) -> str:
        lines = [
            [f"**{name}**" if row["kind"] == "learned" else name, *(cell(found[name]) for found in by_name)]
            for name, row in by_name[0].items()
        ]
        return _measure.table([title, *columns], lines)

    def difference(name: str, baseline: str) -> list[str]:
        pairs = [found[name]["paired_differences"][baseline]["last10"] for found in by_name]
        return [f"{name} − {baseline}", *map(interval, pairs)]

    rows = by_name[0].items()
    differences = [
        difference(name, baseline)
        for name, row in rows
        for baseline in row["paired_differences"] or {}
        if baseline in everywhere
    ]
    return [
        table("mean loss of the last 10 steps (of all)", lambda row: _two(row["last10_mean"], row["all_mean"])),
        _measure.table(["paired difference, last 10 [95 %]", *columns], differences),
        table("loss on test images at the end (accuracy)", lambda row: _two(row["test_loss"], row["accuracy"])),
    ]


def _two(first: Any, second: Any) -> str:
    return f"{float(first):.3f} ({float(second):.3f})"


def lost(rows: Sequence[Row], measure: str) -> str:
    """To which baselines learned optimizers lose, by paired differences: beyond noise, or perhaps."""
    parts = []
    for row in rows:
        pairs = {name: found[measure] for name, found in (row["paired_differences"] or {}).items()}
        lows = {name: float(pair["ci95"][0]) for name, pair in pairs.items()}
        highs = {name: float(pair["ci95"][1]) for name, pair in pairs.items()}
        worse = [f"{name} {interval(pairs[name])}" for name in pairs if lows[name] > 0]
        even = [f"{name} {interval(pairs[name])}" for name in pairs if lows[name] <= 0 <= highs[name]]
        if pairs:
            words = f"{row['optimizer']} to {', '.join(worse) or 'none'}"
            parts.append(words + (f", and cannot be told apart from {', '.join(even)}" if even else ""))
    return "; ".join(parts)


def readme_row(content: Content) -> list[str]:
    """The last ten steps of both forms on one network, beside Muon and Adam."""
    rows = {row["optimizer"].partition("+")[0]: f"{float(row['last10_mean']):.3f}" for row in content["rows"]}
    ours = [rows[name] for name in ("port_hamiltonian_kronecker", "port_hamiltonian")]
    text = f"MNIST, {_network(content).replace('relu', 'ReLU')}: loss over the last 10 of {content['horizon']} steps"
    return [f"{text} (tuned Muon {rows['muon']}, Adam {rows['adam']})", *ours]
