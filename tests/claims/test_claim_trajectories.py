"""Paths and energies of single runs, against closed forms, and the panels that are made of them."""

import math

import numpy as np
import pytest
import torch

from ph_l2o.claims.figures import claim_figure
from ph_l2o.claims.kinds import KINDS
from ph_l2o.claims.parsing import parse_claims
from ph_l2o.claims.trajectories import follow_paths, ground, record_energies
from ph_l2o.errors import ConfigError
from ph_l2o.evaluation.baselines import baseline
from ph_l2o.optimizers import PortHamiltonian
from ph_l2o.tasks import Quadratic, Saddle

TASK = Saddle(dim=2, rotate=False, curvature=0.1)
HOW = {"start": [0.01, 0.8], "window": [-1.4, 1.4, -0.6, 1.0], "minima": [[1, 0], [-1, 0]]}
SIZES = {"horizon": 150, "num_problems": 2, "seed": 0}


def path():
    return follow_paths(baseline("sgd@0.5", 150), TASK, **SIZES, **HOW)


def test_a_path_is_gradient_descent_by_hand():
    """Of ¼ γ (x² - 1)² + ½ y²; it has escaped when that is below half of the saddle's ¼ γ."""
    at, points = np.array(HOW["start"]), []
    for _ in range(151):
        points.append(at)
        at = at - 0.5 * np.array([0.1 * at[0] * (at[0] ** 2 - 1), at[1]])
    x, y = np.array(points).T
    found = path()
    assert found.curves["path"]["x"] == pytest.approx(x, rel=6e-4, abs=1e-6)
    assert found.curves["path"]["y"] == pytest.approx(y, rel=6e-4, abs=1e-6)
    escaped = 0.025 * (x**2 - 1) ** 2 + 0.5 * y**2 < 0.5 * 0.025
    assert found.values["steps"].tolist() == [escaped.argmax()] * 2 and 0 < escaped.argmax() < 150
    assert follow_paths(baseline("sgd@1e-4", 9), TASK, horizon=9, num_problems=2, seed=0, **HOW).values["steps"][0] == (
        math.inf
    )


def test_the_ground_is_the_loss():
    found = ground(TASK, seed=0, **HOW)
    x, y = np.array(found["x"]), np.array(found["y"])[:, None]
    assert np.array(found["loss"]) == pytest.approx(0.025 * (x**2 - 1) ** 2 + 0.5 * y**2, abs=2e-3)
    assert found["saddle"] == [0, 0] and (x[0], x[-1], y[0, 0], y[-1, 0]) == (-1.4, 1.4, -0.6, 1.0)


@pytest.mark.parametrize(
    ("changed", "task", "message"),
    [
        ({"minima": [[0, 0]]}, TASK, r"options.minima=\[\[0, 0\]\]: the loss is lower elsewhere"),
        ({"start": [2, 0]}, TASK, r"options.start=\[2, 0\]: must be a point of the window"),
        ({"window": [1, -1, 0, 1]}, TASK, r"options.window=\[1, -1, 0, 1\]: must be left, right"),
        ({}, Saddle(dim=3), "kind=paths: saddle_strict has 3 coordinates"),
    ],
)
def test_bad_options_are_one_line(changed, task, message):
    with pytest.raises(ConfigError, match=message):
        ground(task, seed=0, **{**HOW, **changed})


def test_a_path_needs_a_test_of_escape():
    with pytest.raises(ConfigError, match="have no test of escape"):
        follow_paths(baseline("sgd@0.1", 3), Quadratic(2), horizon=3, num_problems=2, seed=0, start=[0, 0])


def energies():
    torch.manual_seed(0)
    return record_energies(PortHamiltonian(), Quadratic(4), horizon=30, num_problems=5, seed=0)


def test_the_account_is_what_is_in_use_and_never_rises():
    found = energies()
    assert (found.values["rise"] < 1e-6).all() and (found.values["left"] <= 1).all()
    lines = {name: np.array(line["median"]) for name, line in found.curves.items()}
    assert lines["account"][0] == pytest.approx(lines["tank"][0])  # nothing moves at the start
    assert set(lines) == {"loss", "account", "kinetic", "spring", "tank"}
    with pytest.raises(ConfigError, match="kind=energies: Adam has no account of energy"):
        record_energies(baseline("adam", 3), Quadratic(2), horizon=3, num_problems=2, seed=0)


def rows(measured, **more):
    estimate = (
        {"value": float(np.median(measured.values["steps"])), "ci95": [0, 0]} if "steps" in measured.values else {}
    )
    return {"label": "Ours", "recipe": "fair", "curves": measured.curves, "median": estimate, **more}


def panel(name):
    more = {"rows": [], "strong": [], "title": "Panel", "of": None, "across": {}, "axis": ""}
    return {"measurement": name, "draw": name, **more}


def test_panels_name_every_line_and_mark():
    measured = path()
    paths = {"scene": ground(TASK, seed=0, **HOW), "rows": {"ours": rows(measured)}}
    result = {
        "measurements": {"paths": paths, "energies": {"scene": None, "rows": {"ours": rows(energies())}}},
        "figure": {"says": "", "panels": [panel("paths"), panel("energies")]},
    }
    first, second = claim_figure(result).axes
    texts = [text.get_text() for text in first.texts]
    assert set(texts) == {"start", "saddle", "minimum"}
    assert [t.get_text() for t in first.get_legend().texts] == [f"Ours: {measured.values['steps'][0]:.0f} steps"]
    assert texts.count("minimum") == 2
    inside = first.get_window_extent()
    for text in first.texts:  # no name leaves the panel
        box = text.get_window_extent()
        assert inside.x0 <= box.x0 and box.x1 <= inside.x1 + 1
    names = {text.get_text() for text in second.texts}
    assert {"loss", "dissipated", "account, never rises", "kinetic"} <= names
    assert first.get_xlabel() and first.get_ylabel() and second.get_xlabel() and second.get_ylabel()


def test_a_panel_is_of_its_kind():
    assert not KINDS["paths"].tabled and KINDS["comparison"].tabled
    measurement = {"kind": "energies", "task": ["task=quadratic"], "horizon": 5, "num_problems": 2,
                   "rows": {"a": {"shipped": "port_hamiltonian"}}}  # fmt: skip
    claim = {"title": "T", "claimed": "C", "summary": "S", "trainings": {}, "contrasts": [],
             "measurements": {"one": measurement},
             "figure": {"says": "", "panels": [{"measurement": "one"}]}}  # fmt: skip
    with pytest.raises(
        ConfigError, match=r"panels\[0\].draw=curves: one is of kind=energies; paths, energies are drawn"
    ):
        parse_claims({"mine": claim})
    claim["figure"]["panels"][0]["draw"] = "energies"
    assert parse_claims({"mine": claim})["mine"].panels[0].draw == "energies"
