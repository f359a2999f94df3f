"""What was measured on a GPU, from its result file."""

from __future__ import annotations

from typing import Any

import _measure
from _made import Files, made


def section(files: Files) -> list[str]:
    """Steps of the drop-in, what of them waits, equality, meta-training; of the result file `gpu`."""
    if "gpu" not in files:
        return []
    content = files["gpu"]
    parts = content["parts"]
    return [
        f"On one {content['machine']['gpu']}, while other processes used other cores of the machine. Milliseconds of a "
        "step on matrices of transformers, median (minimum – maximum) in turns; bytes for each weight that stay, and "
        "that a step needs besides. `plain operations` is what the optimizer does where Triton is missing.",
        made([content], "bash benchmarks/gpu.sh"),
        steps(parts),
        waits(parts["waits"]),
        "Largest relative difference to the CPU after 20 steps, losses (parameters): "
        + equality(parts["same steps"])
        + ". "
        "Of Triton's passes to plain operations on the GPU: " + equality(parts["same passes"]) + ".",
        orthogonal(parts["orthogonal"]),
        training(parts),
    ]


def steps(parts: dict[str, Any]) -> str:
    """A row for each size and optimizer."""
    lines = []
    for name, part in parts.items():
        if name.startswith("step times") and "entries" in part:
            for entry in part["entries"]:
                memory, ratios = part["memory"][entry["name"]], entry["ratios"].values()
                lines.append(
                    [
                        f"{part['weights']:,} in {part['tensors']}",
                        entry["name"],
                        _measure.spread(entry, 3),
                        *([_measure.number(r["median"], 3) for r in ratios] or ["1"]),
                        f"{memory['state']:.1f}",
                        f"{memory['transient']:.2f}",
                    ]
                )
    header = ["weights, tensors", "optimizer", "ms", "over AdamW, foreach", "bytes that stay", "besides"]
    return _measure.table(header, lines)


def waits(part: dict[str, Any]) -> str:
    """How often a step on 19 million weights waits, and what it launches."""
    rows = [(name, found) for name, found in part.items() if isinstance(found, dict)]
    columns = ("waits", "launches", "device operations", "device ms")
    lines = [[name, *(_measure.number(found[key], 3) for key in columns)] for name, found in rows]
    return _measure.table(["a step on 1.9e7 weights", *columns], lines)


def equality(part: dict[str, Any]) -> str:
    """Differences of losses and parameters."""
    rows = {name: found for name, found in part.items() if isinstance(found, dict)}
    return "; ".join(f"{name} {x['losses']:.1g} ({x['parameters']:.1g})" for name, x in rows.items())


def orthogonal(part: dict[str, Any]) -> str:
    """Ways to new bases."""
    found = "; ".join(f"{entry['name']} {_measure.spread(entry, 3)}" for entry in part["entries"])
    return f"An orthogonal basis of each of 6 matrices of side {part['side']}, in ms: {found}."


def training(parts: dict[str, Any]) -> str:
    """Speeds of meta-training, with the time that compilation takes."""
    rows = {name: part for name, part in parts.items() if name.startswith("meta-training") and "task-steps/s" in part}
    lines = [
        [name.removeprefix("meta-training, "), f"{part['task-steps/s']:,.0f}", f"{part['training, s']:.1f}"]
        for name, part in rows.items()
    ]
    return _measure.table(["meta-training, 64 quadratics of 10", "task-steps/s", "seconds in all"], lines)
