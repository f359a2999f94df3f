"""Tables for terminals."""

from typing import Any

import pytest

from ph_l2o.evaluation.tables import aligned, fitted, paired_table, plain_table, wrapped


def row(name: str, **more: Any) -> dict[str, Any]:
    final = {"mean": 1.2345e-5, "median": 1.2345e-5, "geometric_mean": 1e-5, "iqm": 1e-5, "ci95": [1e-5, 2e-5]}
    difference = {"mean": -1.234e-5, "ci95": [-2.345e-5, -1.234e-5]}
    return {
        "optimizer": name, "learning_rate": 0.0316, "schedule": "cosine", "final": final, "last10_mean": 1e-5,
        "all_mean": 1e-5, "diverged": 0, "accuracy": 0.9, "test_loss": 0.1, "step_seconds": 1e-3,
        "difference_to_best_baseline": difference, "paired_differences": None, **more,
    }  # fmt: skip


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.usefixtures("narrow")
def test_a_table_fits_80_columns_and_names_what_it_leaves_out() -> None:
    text = plain_table([row("port_hamiltonian_kronecker"), row("adam+cosine")])
    assert max(map(len, text.splitlines())) <= 80
    header, note = text.splitlines()[0], " ".join(text.splitlines()[4:])
    for name in ("optimizer", "mean", "difference [95 %]"):
        assert name in header
    assert note.startswith("not shown, for want of room: ") and "IQM" in note and "IQM" not in header
    columns = ["lr", "schedule", "median", "IQM", "accuracy", "diverged"]
    assert all((name in header.split()) != (name in note.replace(",", "").split()) for name in columns)


def test_a_wide_terminal_has_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    text = plain_table([row("ours"), row("adam")])
    assert "not shown" not in text and all(name in text for name in ("IQM", "geo. mean", "test loss", "ms/step"))


@pytest.mark.usefixtures("narrow")
def test_paired_differences_fit() -> None:
    measures = {what: {"mean": -1.234e-5, "ci95": [-2.345e-5, -1.234e-5]} for what in ("final", "last10", "all")}
    text = paired_table([row("port_hamiltonian_kronecker", paired_differences={"adam+cosine": measures})])
    assert max(map(len, text.splitlines())) <= 80 and "final" in text


@pytest.mark.usefixtures("narrow")
def test_many_columns_go_on_below() -> None:
    header = ["task", *(f"an_optimizer_{k}" for k in range(9))]
    lines = [["a", *(f"{k}.25" for k in range(9))], ["b", *("1" for _ in range(9))]]
    parts = wrapped(header, lines).split("\n\n")
    assert len(parts) == 3 and all(part.startswith("task") for part in parts)
    assert max(len(line) for part in parts for line in part.splitlines()) <= 80
    assert sum(part.count(".25") for part in parts) == 9


def test_one_that_fits_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    header, lines = ["a", "b"], [["1", "22"]]
    assert fitted(header, lines, header) == wrapped(header, lines) == aligned(header, lines)
