import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest

from ph_l2o.data.lock import process_lock


def test_second_waits_and_says_so_once(tmp_path: Path) -> None:
    path, events = tmp_path / "lock", []
    entered = threading.Event()

    def first() -> None:
        with process_lock(path, on_wait=lambda: events.append("first waits")):
            entered.set()
            time.sleep(0.4)
            events.append("first done")

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait()
    with process_lock(path, on_wait=lambda: events.append("second waits")):
        events.append("second in")
    thread.join()
    assert events == ["second waits", "first done", "second in"]
    assert list(tmp_path.iterdir()) == []


def test_freed_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with pytest.raises(KeyboardInterrupt), process_lock(path, on_wait=lambda: None):
        raise KeyboardInterrupt
    assert not path.exists()
    with process_lock(path, on_wait=lambda: pytest.fail("waited")):
        assert path.exists()


def _die_holding(path: Path) -> None:
    with process_lock(path, on_wait=lambda: None):
        os._exit(1)


def test_freed_when_the_holder_dies(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    process = multiprocessing.get_context("spawn").Process(target=_die_holding, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == 1 and path.exists()
    with process_lock(path, on_wait=lambda: pytest.fail("waited")):
        pass


def test_never_two_inside(tmp_path: Path) -> None:
    path, inside, overlaps = tmp_path / "lock", [], []

    def work() -> None:
        for _ in range(3):
            with process_lock(path, on_wait=lambda: None):
                inside.append(1)
                overlaps.append(len(inside) > 1)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == [False] * 12
