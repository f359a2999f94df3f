"""Measurements in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[1]
ROOT = BENCHMARKS.parent


def environment(threads: int, **more: str) -> dict[str, str]:
    """Variables of a process that has this repository's package and a fixed number of threads."""
    path = os.pathsep.join([str(BENCHMARKS), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)} | more


def ask(module: str, question: Mapping[str, Any], *, threads: int, **more: str) -> Any:
    """The answer that a probe, a module of this package, prints as its last line, in JSON.

    Args:
        module: Name of the probe.
        question: What it is told, plain values.
        threads: CPU threads.
        more: Further environment variables.

    Raises:
        RuntimeError: If it fails.
    """
    call = [sys.executable, "-m", f"suite.{module}", json.dumps(question)]
    done = subprocess.run(call, env=environment(threads, **more), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{module}: {(done.stderr.strip() or f'exit status {done.returncode}').splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def question() -> dict[str, Any]:
    """What a probe was told."""
    return json.loads(sys.argv[1])


def peaks(cases: Sequence[Mapping[str, Any]], data: Path, threads: int, repetitions: int) -> list[dict[str, Any]]:
    """For each case of `probe_memory` the peaks of all repetitions, `{"mib": […]}`, or `{"refused": why}`."""
    question = {"cases": list(cases), "data": str(data), "threads": threads, "repetitions": repetitions}
    return ask("probe_memory", question, threads=threads)
