"""Peak memory of meta-training, in MiB beyond what the process has after its imports and with its data read."""

from __future__ import annotations

from typing import Any

from _measure import Found, entry

from suite import cases, fresh
from suite.options import Options

TASK, NAME = "mnist", "port_hamiltonian"


def questions(options: Options) -> dict[str, dict[str, Any]]:
    """Every estimator at two horizons on one network; every optimizer on the same windows."""
    short, long, truncation = (4, 8, 2) if options.quick else (40, 120, 20)
    asked: dict[str, dict[str, Any]] = {}
    for estimator in cases.estimators():
        # All directions do not fit for the port-Hamiltonian network: their row is the one of an optimizer with few.
        optimizer = "adam" if cases.refused(NAME, estimator) else NAME
        if options.quick and not estimator.startswith(("truncated", "full")):
            continue
        for horizon in (short, long):
            asked[f"{optimizer}, {estimator}, horizon {horizon}"] = {
                "optimizer": optimizer, "estimator": estimator, "problems": 1, "horizon": horizon,
            }  # fmt: skip
    for name in ("port_hamiltonian", "adam") if options.quick else cases.OPTIMIZERS:
        asked[f"{name}, truncated order 1, 2 problems"] = {
            "optimizer": name, "estimator": "truncated order 1", "problems": 2, "horizon": truncation,
        }  # fmt: skip
    return {name: {**question, "task": TASK, "truncation": truncation} for name, question in asked.items()}


def measured(options: Options) -> Found:
    """Each repetition in a fresh process."""
    found, asked = Found(), questions(options)
    repetitions = options.pick(options.repetitions, 1)
    answers = fresh.peaks(list(asked.values()), options.data, options.threads, repetitions)
    for (name, settings), answer in zip(asked.items(), answers, strict=True):
        if "refused" in answer:
            found.skipped[name] = answer["refused"]
        else:
            found.entries.append(entry(name, answer["mib"], unit="MiB", better="lower", settings=settings))
    return found
