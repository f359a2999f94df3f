"""What is kept is used only while all that it depends on is the same."""

from __future__ import annotations

import shutil
import sys
import textwrap
from pathlib import Path

import pytest
from test_architecture import FLOORS

import ph_l2o
from ph_l2o.evaluation import cache, tune
from ph_l2o.evaluation.cache import cached, fingerprint, source_digest
from ph_l2o.optimizers import SGD, Adam, AdamW, PortHamiltonian, Scheduled
from ph_l2o.tasks import Quadratic


@pytest.fixture
def sources(tmp_path, monkeypatch) -> Path:
    """A copy of the package's sources in place of them."""
    root = tmp_path / "ph_l2o"
    shutil.copytree(ph_l2o.__path__[0], root, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    monkeypatch.setattr(cache, "ROOT", root)
    yield root
    forget()


def forget() -> None:
    """As in another process."""
    source_digest.cache_clear()
    cache._file_digest.cache_clear()


def change(path: Path) -> None:
    text = path.read_text()
    path.write_text(text[:-1] + " " + text[-1])
    forget()


@pytest.mark.parametrize(
    "name",
    ["port_hamiltonian/energy.py", "port_hamiltonian/fused.cpp", "optimizers/classical.py", "inner/loop.py",
     "tasks/quadratic.py", "params.py", "evaluation/grid_search.py"],
)  # fmt: skip
def test_a_changed_source_is_another_result(sources, tmp_path, name):
    def tuned() -> bool:
        folder = tmp_path / "kept"
        return tune("sgd", Quadratic(2), horizon=3, num_problems=2, seed=0, cache_dir=folder, grid={"lr": [0.1]}).cached

    assert (tuned(), tuned()) == (False, True)
    change(sources / name)
    assert (tuned(), tuned()) == (False, True)


def test_other_sources_change_nothing(sources):
    before = source_digest(sources)
    for name in ("commands/train.py", "meta/fit.py", "evaluation/plots.py", "__init__.py", "compilation/__init__.py"):
        change(sources / name)
    assert source_digest(sources) == before


def test_every_room_below_the_estimators_counts():
    below = {room for floor in range(4) for room in FLOORS[floor]}
    above = {room for floor, rooms in FLOORS.items() if floor > 3 for room in rooms}
    assert {name.removesuffix(".py") for name in cache.ABOVE} - {"conf"} == above
    assert not below & above


def test_a_file_from_outside_counts(tmp_path, monkeypatch):
    source = """
        import functools
        from ph_l2o.optimizers import SGD

        class Mine(SGD):
            pass

        def size(k):
            return k
    """
    path = tmp_path / "outside_cached.py"
    path.write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    outside = __import__("outside_cached")
    task, other = Quadratic(2), Quadratic(2)
    other.size = outside.functools.partial(outside.size, 3)
    runs: list[int] = []

    def known(optimizer, task) -> bool:
        return cached(
            tmp_path / "kept", "x", {}, optimizer, task, make=lambda: runs.append(1), write=str, read=str
        )[1]  # fmt: skip

    cases = [(outside.Mine(), task), (Scheduled(outside.Mine(), horizon=3), task), (SGD(), other), (SGD(), task)]
    assert [known(*case) for case in cases * 2] == [False] * 4 + [True] * 4
    change(path)
    assert [known(*case) for case in cases] == [False, False, False, True]
    del sys.modules["outside_cached"]


def test_fingerprints_tell_weights_and_settings_apart():
    made = [Adam(lr=0.1), Adam(lr=0.2), Adam(lr=0.1, beta2=0.9), SGD(lr=0.1), PortHamiltonian()]
    made += [Scheduled(AdamW(), name, horizon=k) for name in ("cosine", "linear") for k in (3, 4)]
    assert len({fingerprint(o) for o in made}) == len(made)
    assert fingerprint(Adam(lr=0.1)) == fingerprint(Adam(lr=0.1).eval())


def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cached(None, "x", {}, SGD(), Quadratic(2), make=lambda: 3, write=str, read=int) == (3, False)
    assert not list(tmp_path.iterdir())
