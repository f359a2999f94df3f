"""How long it takes to start: `import ph_l2o` beside `import torch`, and `--help`, each in a fresh process.

python benchmarks/start_up.py --json start_up.json
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import _measure

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import ph_l2o": ["-c", "import ph_l2o"],
    "import ph_l2o.optimizers": ["-c", "import ph_l2o.optimizers"],
    "train.py --help": ["train.py", "--help"],
    "evaluate.py --help": ["evaluate.py", "--help"],
}


def seconds_of(arguments: list[str]) -> Callable[[], float]:
    """A measurement of one process, from start to end."""

    def measure() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began

    return measure


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=7, help="runs of each command (default: 7)")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    arguments = parser.parse_args()

    contestants = {name: seconds_of(command) for name, command in COMMANDS.items()}
    for measure in contestants.values():
        measure()  # read the files from disk once, and write Python's caches
    values = _measure.interleaved(contestants, arguments.repetitions)
    found = {name: _measure.summary(v) for name, v in values.items()}
    print(_measure.table(("command", "seconds"), [(f"`{name}`", _measure.spread(f)) for name, f in found.items()]))
    ratio = _measure.ratios(values["import ph_l2o"], values["import torch"])
    print(f"\nimport ph_l2o takes {_measure.spread(ratio)} times as long as import torch")
    _measure.write_json(
        arguments.json,
        {
            "unit": "s",
            "machine": _measure.machine(),
            "commands": found,
            "import_ph_l2o_over_import_torch": ratio,
        },
    )


if __name__ == "__main__":
    main()
