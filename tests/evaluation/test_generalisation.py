"""Training against test, where the answer is known: f = ½ a θ² from θ = 1, by gradient descent θ_k = (1 - a lr)^k."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from ph_l2o.data import ImageData
from ph_l2o.evaluation import measure_generalisation
from ph_l2o.optimizers import SGD, Adam, ScheduleFreeAdamW
from ph_l2o.tasks import ImageClassification, Quadratic

P, T = 3, 40
CURVATURES = 1.0 + np.arange(P)
F64 = torch.float64


def path(lr: float) -> np.ndarray:
    """θ_k, `(T + 1, P)`."""
    return (1 - CURVATURES * lr) ** np.arange(T + 1)[:, None]


def row_of(found, name: str, at: str, k: int = 0) -> dict:
    return [row for row in found.rows if (row["optimizer"], row["at"]) == (name, at)][k]


def measured(bowl, optimizers, **arguments):
    arguments = {"horizon": T, "num_problems": P, "dtype": F64, "every": 1, **arguments}
    return measure_generalisation(optimizers, bowl(), **arguments)


RATES = {"fast": 0.125, "slow": 0.03125}


@pytest.mark.parametrize("chunk", [1, 2, None])
@pytest.mark.parametrize("every", [1, 7])
def test_at_equal_steps_and_at_equal_loss(bowl, every, chunk):
    found = measured(bowl, {n: SGD(lr=lr) for n, lr in RATES.items()}, every=every, chunk=chunk)
    steps = [k for k in range(T + 1) if k % every == 0 or k == T]
    assert found.steps.tolist() == steps
    training = {n: 0.5 * CURVATURES * path(lr)[steps] ** 2 for n, lr in RATES.items()}
    level = np.maximum(*(x.min(0) for x in training.values()))
    np.testing.assert_allclose(found.levels, level[None])
    for name, lr in RATES.items():
        theta = path(lr)
        values = row_of(found, name, "equal_steps")["values"]
        np.testing.assert_allclose(values["train_loss"], 0.5 * CURVATURES * theta[T] ** 2, rtol=1e-6)
        np.testing.assert_allclose(values["test_loss"], theta[T] ** 2, rtol=1e-6)
        np.testing.assert_allclose(values["gap"], (1 - 0.5 * CURVATURES) * theta[T] ** 2, rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(values["accuracy"], np.abs(theta[T]) < 0.5)
        np.testing.assert_allclose(values["sharpness"], CURVATURES, rtol=1e-9)
        first = [next(k for k, x in zip(steps, column, strict=True) if x <= level[i]) for i, column in
                 enumerate(training[name].T)]  # fmt: skip
        row = row_of(found, name, "equal_loss")
        assert row["values"]["step"] == first and row["problems"] == P
        np.testing.assert_allclose(row["values"]["test_loss"], theta[first, range(P)] ** 2, rtol=1e-6)
        np.testing.assert_allclose(row["test_loss"]["mean"], np.mean(theta[first, range(P)] ** 2), rtol=1e-6)
        assert row["diverged"] == 0 and row["sharpness_not_converged"] == 0
    assert row_of(found, "slow", "equal_loss")["values"]["step"] == [T] * P


def test_levels_that_are_given_and_not_reached_by_all(bowl):
    found = measured(bowl, {n: SGD(lr=lr) for n, lr in RATES.items()}, levels=[0.3, 0.02])
    for k, level in enumerate((0.3, 0.02)):
        for name, lr in RATES.items():
            row = row_of(found, name, "equal_loss", k)
            training = 0.5 * CURVATURES * path(lr) ** 2
            expected = [next((step for step, x in enumerate(c) if x <= level), None) for c in training.T]
            assert [None if np.isnan(x) else x for x in row["values"]["step"]] == expected and row["level"] == level
            assert row["problems"] == sum(x is not None for x in expected)
    text = json.loads(found.to_json())
    slow = next(r for r in text["rows"] if r["optimizer"] == "slow" and r["level"] == 0.02)
    assert slow["values"]["test_loss"].count(None) == P - slow["problems"] > 0


def test_differences_are_paired_and_to_the_baseline_that_is_best_in_validation(bowl):
    found = measured(bowl, {"ours": SGD(lr=0.1), "sgd": "sgd", "adam": "adam"}, tuning_problems=4)
    best = found.best_baseline
    assert best in ("sgd", "adam")
    for at in ("equal_steps", "equal_loss"):
        ours, theirs = (row_of(found, name, at) for name in ("ours", best))
        pairs = np.array(ours["values"]["test_loss"]) - np.array(theirs["values"]["test_loss"])
        difference = ours["differences_to_best_baseline"]["test_loss"]
        np.testing.assert_allclose(difference["mean"], pairs.mean())
        assert difference["ci95"][0] <= pairs.mean() <= difference["ci95"][1] and difference["problems"] == P
        assert theirs["differences_to_best_baseline"]["gap"]["mean"] == 0
        assert ours["sharpness_ratio_to_best_baseline"]["geometric_mean"] == pytest.approx(1)
    assert [row["kind"] for row in found.rows[:3]] == ["classical", "baseline", "baseline"]
    assert len(found.flat_rows()) == 6 and "test_loss_difference_mean" in found.flat_rows()[0]
    assert "equal_loss" in str(found)


def test_one_that_diverges_is_counted_and_sets_no_level(bowl):
    both = {"fast": SGD(lr=0.125), "slow": SGD(lr=0.03125)}
    plain = measured(bowl, both)
    found = measured(bowl, {**both, "broken": SGD(lr=1e9), "worse": SGD(lr=0.9)}, horizon=T)
    np.testing.assert_array_equal(found.levels[0, 2], plain.levels[0, 2])  # on which "worse" diverges too: a lr > 2
    row = row_of(found, "broken", "equal_steps")
    assert row["diverged"] == P and row["test_loss"]["mean"] > 1e10
    assert row_of(found, "broken", "equal_loss")["problems"] == 0
    assert row_of(found, "broken", "equal_loss")["test_loss"] is None
    assert row_of(found, "worse", "equal_steps")["diverged"] == 1
    json.loads(found.to_json())


def batch_normed() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))


@pytest.fixture
def images(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (300, 1, 4, 4), generator=generator).to(torch.uint8)
    labels = pixels.flatten(1)[:, :3].argmax(1)
    data = ImageData(pixels, labels, pixels[:50], labels[:50], 3)
    monkeypatch.setattr("ph_l2o.tasks.image_task.load_images", lambda name, root: data)


@pytest.mark.parametrize("make", [lambda: Adam(lr=0.05), lambda: ScheduleFreeAdamW(lr=0.05)], ids=["adam", "averaged"])
@pytest.mark.parametrize("model", [None, batch_normed], ids=["mlp", "batch norm"])
def test_the_second_run_is_the_first(images, make, model):
    """At a level that is reached only at the end, what is measured is what was measured at the end; twice the same."""
    task = ImageClassification(hidden_sizes=(4,), batch_size=16, train_images=40, label_noise=0.1, model=model)
    arguments = {"horizon": 24, "num_problems": 4, "every": 8, "sharpness_sample": 20, "dtype": F64}
    first = measure_generalisation({"a": make()}, task, **arguments)
    training = np.array(row_of(first, "a", "equal_steps")["values"]["train_loss"])
    found = measure_generalisation({"a": make()}, task, **arguments, chunk=3)
    for name, values in row_of(first, "a", "equal_steps")["values"].items():
        np.testing.assert_allclose(row_of(found, "a", "equal_steps")["values"][name], values, rtol=1e-4, err_msg=name)
    again = measure_generalisation({"a": make()}, task, **arguments)
    assert json.dumps(again.to_dict()["rows"]) == json.dumps(first.to_dict()["rows"])
    at_end = np.array(row_of(first, "a", "equal_loss")["values"]["step"]) == 24
    assert at_end.any()
    for name, values in row_of(first, "a", "equal_loss")["values"].items():
        ends = np.array(row_of(first, "a", "equal_steps")["values"][name])
        np.testing.assert_array_equal(np.array(values)[at_end], ends[at_end], err_msg=name)
    assert np.isfinite(training).all()


def test_without_sharpness(bowl):
    row = row_of(measured(bowl, {"a": SGD(lr=0.1)}, sharpness_sample=0), "a", "equal_steps")
    assert row["sharpness"] is None and row["sharpness_not_converged"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"horizon": 0}, "horizon=0: must be >= 1"),
        ({"num_problems": 1}, "num_problems=1: must be >= 2"),
        ({"every": 0}, "every=0: must be >= 1"),
        ({"sample": 0}, "sample=0: must be >= 1"),
        ({"sharpness_sample": -1}, "sharpness_sample=-1: must be >= 0"),
        ({"levels": []}, r"levels=\[\]: must be one or more"),
        ({"levels": [float("nan")]}, r"levels=\[nan\]: must be one or more"),
        ({"levels": ["nope"]}, r"levels=\['nope'\]: must be one or more"),
        ({"split": "tset"}, "split=tset: must be one of"),
        ({"tuning_problems": 1}, "tuning_problems=1: must be >= 2"),
    ],
)
def test_bad_arguments(bowl, arguments, message):
    with pytest.raises(ValueError, match=message):
        measured(bowl, {"a": SGD(lr=0.1)}, **arguments)


def test_a_task_without_held_out_loss_is_refused():
    with pytest.raises(ValueError, match="task=quadratic: has no held-out loss; choose one that has"):
        measure_generalisation({"a": SGD(lr=0.1)}, Quadratic(2), 3, 2)
