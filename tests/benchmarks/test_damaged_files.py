"""The script that damages files, on some of its cases."""

import damaged_files  # type: ignore[import-not-found]
import pytest
from _damages import REFUSED, SAME, WRITTEN, Damage  # type: ignore[import-not-found]


@pytest.mark.parametrize(("kind", "count", "every"), [("checkpoints", 60, 31), ("weights", 60, 6), ("data", 12, 2)])
def test_damaged_files_are_refused_or_read_right(mnist_root, kind, count, every):
    found = damaged_files.run(kind, mnist_root, count, every)
    assert found["failures"] == {}
    assert found["files"] >= 8 and found["outcomes"]["refused"] > found["files"] // 2


FAILURES = [
    (REFUSED, ("read", "sum"), "accepted silently"),
    (SAME, ("read", "another sum"), "accepted silently"),
    (SAME, ("read", "sum"), "read"),
    (WRITTEN, ("read", "another sum"), "read"),
    (SAME, ("refused", "no such thing"), "unclear"),
    (SAME, ("refused", "best.ckpt: damaged"), "unclear"),
    (SAME, ("refused", "best.ckpt: damaged; use another\nor not"), "unclear"),
    (SAME, ("refused", "best.ckpt: damaged; use another"), "refused"),
    (WRITTEN, ("traceback", "KeyError"), "traceback"),
]


@pytest.mark.parametrize(("expected", "outcome", "verdict"), FAILURES)
def test_failures_are_seen(tmp_path, expected, outcome, verdict):
    damage = Damage("any", lambda path: None, expected)
    assert damaged_files.judged(damage, outcome, tmp_path / "best.ckpt", "sum") == verdict


def test_what_crashes_or_hangs_is_seen(tmp_path, monkeypatch):
    import ctypes
    import time

    monkeypatch.setattr(damaged_files, "SECONDS", 0.3)
    for look, kind in ((lambda path: ctypes.string_at(0), "crash"), (lambda path: time.sleep(9), "hang")):
        assert damaged_files.outcome(look, tmp_path)[0] == kind  # type: ignore[arg-type]

    def broken(path):
        raise KeyError(path)

    assert damaged_files.outcome(broken, tmp_path)[0] == "traceback"
