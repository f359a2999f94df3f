"""How long it takes to start: `import ph_l2o` beside `import torch`, and `--help`, each in a fresh process."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from _measure import Found, contest

from suite import fresh
from suite.options import Options

REFERENCE = "import torch"
COMMANDS = {
    "python -c pass": ("-c", "pass"),
    REFERENCE: ("-c", "import torch"),
    "import ph_l2o": ("-c", "import ph_l2o"),
    "import ph_l2o.optimizers": ("-c", "import ph_l2o.optimizers"),
    "train.py --help": ("train.py", "--help"),
    "evaluate.py --help": ("evaluate.py", "--help"),
}


def seconds_of(arguments: Sequence[str], threads: int) -> Callable[[], float]:
    """A measurement of one process, from start to end."""

    def measure() -> float:
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, *arguments], cwd=fresh.ROOT, env=fresh.environment(threads), check=True,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        return time.perf_counter() - began

    return measure


def measured(options: Options) -> Found:
    """Seconds; the first call of each reads the files from disk and writes Python's caches."""
    names = [REFERENCE, "import ph_l2o"] if options.quick else list(COMMANDS)
    contestants = {name: seconds_of(COMMANDS[name], options.threads) for name in names}
    return contest(
        contestants, options.repetitions, unit="s", better="lower", references=(REFERENCE,), warm_up=not options.quick
    )
