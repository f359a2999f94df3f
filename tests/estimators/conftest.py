"""The closed forms lie with the benchmark that tabulates them, modules of many kinds with the tests of tasks."""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parents[2] / "benchmarks"), str(Path(__file__).parents[1] / "tasks")]


@pytest.fixture(scope="module", autouse=True)
def only_new_objects() -> Iterator[None]:
    """Where a test collects garbage or counts objects, it looks at those of its own file alone, which is faster."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
