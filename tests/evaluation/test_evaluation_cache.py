"""What is kept is used only while all that it depends on is the same."""

from __future__ import annotations

import shutil
import sys
import textwrap
from pathlib import Path

import pytest

import ph_l2o
from ph_l2o.evaluation import cache, tune
from ph_l2o.evaluation.cache import cached, fingerprint
from ph_l2o.evaluation.sources import _imported, file_digest, reachable
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
    _imported.cache_clear()
    file_digest.cache_clear()


def change(path: Path) -> None:
    text = path.read_text()
    path.write_text(text[:-1] + " " + text[-1])
    forget()


SHARED = ["inner/loop.py", "tasks/quadratic.py", "params.py", "evaluation/grid_search.py", "keys.py"]


@pytest.mark.parametrize(
    ("optimizer", "own", "others"),
    [
        (SGD(), ["optimizers/classical.py"], ["port_hamiltonian/energy.py", "optimizers/soap.py", "tasks/mlp.py"]),
        (Scheduled(SGD(), horizon=3), ["optimizers/classical.py", "optimizers/scheduled.py"], ["optimizers/lstm.py"]),
        (
            PortHamiltonian(),
            ["port_hamiltonian/energy.py", "port_hamiltonian/fused.cpp", "port_hamiltonian/controller.py"],
            ["optimizers/muon.py", "evaluation/plots.py", "meta/fit.py", "commands/train.py", "__init__.py"],
        ),
    ],
    ids=lambda x: type(x).__name__,
)
def test_a_result_depends_on_the_sources_that_it_comes_from(sources, tmp_path, optimizer, own, others):
    def known() -> bool:
        return cached(tmp_path / "kept", "x", {}, optimizer, Quadratic(2), make=lambda: 1, write=str, read=int)[1]

    assert (known(), known()) == (False, True)
    for name in (*SHARED, *own):
        change(sources / name)
        assert (known(), known()) == (False, True), name
    for name in others:
        change(sources / name)
    assert known()


def test_tuning_depends_on_them_too(sources, tmp_path):
    def tuned() -> bool:
        folder = tmp_path / "kept"
        return tune("sgd", Quadratic(2), horizon=3, num_problems=2, seed=0, cache_dir=folder, grid={"lr": [0.1]}).cached

    assert (tuned(), tuned()) == (False, True)
    change(sources / "optimizers/classical.py")
    assert (tuned(), tuned()) == (False, True)


def test_what_is_imported_by_any_form_is_found(tmp_path):
    files = {
        "a.py": "import ph_l2o.b\nfrom ph_l2o import c\nfrom ph_l2o.room import name\nimport torch",
        "b.py": "def late():\n    from ph_l2o.room.inside import f",
        "c.py": "",
        "d.py": "",
        "room/__init__.py": "",
        "room/inside.py": "",
        "room/beside.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = {str(path.relative_to(tmp_path)) for path in reachable(tmp_path, ["ph_l2o.a", "torch.nn"])}
    assert found == {"a.py", "b.py", "c.py", "room/__init__.py", "room/inside.py"}


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
