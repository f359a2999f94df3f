"""Steps to escape a saddle: counted, tuned, paired, and their slope."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ph_l2o.evaluation import measure_escapes
from ph_l2o.evaluation.escape_runs import EscapeSearch, count_steps, quantile
from ph_l2o.evaluation.escape_statistics import wilson
from ph_l2o.inner import run
from ph_l2o.keys import ProblemKeys
from ph_l2o.optimizers import SGD, Adam, Momentum
from ph_l2o.params import Params
from ph_l2o.tasks import Problem, Quadratic, Saddle, Task


class Hill(Task):
    """-½ γ θ² from θ₀ = a problem's number + 1, escaped at θ = 1,000: exact numbers of steps."""

    def __init__(self, gamma: float = 1.0, name: str = "hill"):
        self.gamma, self.name = gamma, name

    def sample(self, keys: ProblemKeys, *, device: Any = "cpu", dtype: torch.dtype = torch.float32) -> Problem:
        return HillProblem(keys, self.gamma)


class HillProblem(Problem):
    def __init__(self, keys: ProblemKeys, gamma: float):
        self.keys, self.gamma = keys, gamma
        self.params = Params.from_tensors({"theta": torch.tensor([1.0 + i for i in keys.indices])})

    def loss(self, params, buffers, batch):
        return -0.5 * self.gamma * params.flat.square().sum(1), buffers

    def escaped(self, losses: Tensor) -> Tensor:
        return losses < -0.5 * self.gamma * 1000**2


def expected(number: int, rate: float) -> int:
    return next(k for k in range(10**6) if (number + 1) * (1 + rate) ** k > 1000)


def test_steps_are_those_of_the_closed_form_whoever_leaves_first():
    indices = [0, 500, 3, 999, 7, 2000]
    found = count_steps(lambda _: SGD(lr=0.1), Hill(), indices, horizon=200, seed=0, split="test")
    assert found.steps.tolist() == [expected(i, 0.1) for i in indices] and not found.diverged.any()
    short = count_steps(lambda _: SGD(lr=0.1), Hill(), indices, horizon=60, seed=0, split="test")
    assert short.steps.tolist() == [math.inf, 8, 58, 1, 51, 0] and not short.diverged.any()


def test_steps_are_those_of_whole_episodes():
    task, optimizer = Saddle(curvature=0.05), Adam(lr=0.03)
    found = count_steps(lambda _: optimizer, task, range(40), horizon=60, seed=3, split="val")
    problem: Any = task.sample(ProblemKeys(3, "val", 0, range(40)))
    escaped = problem.escaped(run(optimizer, problem, 60)[1])
    first = torch.where(escaped.any(0), escaped.int().argmax(0).double(), math.inf)
    assert 0 < first.isinf().sum() < 40 and found.steps.tolist() == first.tolist()


def test_divergence_is_counted_and_does_not_stop_the_others():
    rates = torch.tensor([1.0, 5.0, 1.0, 1e30])
    task = Saddle(curvature=0.1)

    def optimizer_of(places: np.ndarray) -> SGD:
        return SGD().with_hyperparameters(lr=rates[torch.from_numpy(places)])

    found = count_steps(optimizer_of, task, range(4), horizon=300, seed=0, split="test")
    assert np.isfinite(found.steps).tolist() == [True, False, True, False]
    assert found.diverged.tolist() == [False, True, False, True]


def test_quantiles_are_the_times_by_which_a_share_had_escaped():
    steps = np.array([4.0, math.inf, 1.0, 3.0])
    assert [quantile(steps, q) for q in (0.25, 0.5, 0.75, 1.0)] == [1, 3, 4, math.inf]


def test_the_binomial_interval_is_wilsons():
    for count, total in ((0, 10), (7, 20), (256, 256)):
        low, high = wilson(count, total)
        for share in (low, high):  # it is where the normal test of this share is at its limit
            spread = 1.959963984540054 * math.sqrt(share * (1 - share) / total)
            assert share in (0.0, 1.0) or abs(abs(count / total - share) - spread) < 1e-12
        assert low <= count / total <= high and (low > 0) == (count > 0) and (high < 1) == (count < total)


def test_a_search_finds_the_best_rate_and_widens_its_grid():
    task = Saddle(curvature=0.05)
    arguments = ("sgd", SGD(), task, ("lr",), 400, 16, 0, "cpu", torch.float32, None, None)
    search = EscapeSearch(*arguments)
    assert search.search({"lr": (0.01, 0.03)})
    (best,) = search.best()
    medians = {}
    for (rate,) in search.table:
        steps = count_steps(lambda _, r=rate: SGD(lr=r), task, range(16), horizon=400, seed=0, split="val").steps
        medians[rate] = quantile(steps, 0.5)
    assert medians[best] == min(medians.values()) == search.table[(best,)] < 120 and 1 < best < 2.1
    most = EscapeSearch(*arguments, 0.9)
    most.search({"lr": (0.01, 0.03)})
    steps = count_steps(lambda _: SGD(lr=most.best()[0]), task, range(16), horizon=400, seed=0, split="val").steps
    assert min(most.table.values()) == np.sort(steps)[14] > medians[best]
    never = EscapeSearch(*arguments[:4], 30, *arguments[5:])
    never.search({"lr": (1e-4, 1e-3)})
    assert all(31 <= value <= 32 for value in never.table.values()), "no median within the horizon"
    assert never.best()[0] > 1e-3, "the loss says where to go"


def test_the_slope_of_gradient_descent_is_one_and_rows_say_what_happened():
    tasks: dict[float, Task] = {gamma: Hill(gamma) for gamma in (0.1, 0.05, 0.025)}
    found = measure_escapes({"descent": SGD(lr=0.1)}, tasks, horizon=3000, num_problems=20)
    (slope,) = found.slopes
    assert abs(slope["slope"] - 1) < 0.01 and slope["ci95"][0] <= slope["slope"] <= slope["ci95"][1]
    assert [row["steps"]["median"] for row in found.rows] == [expected(10, 0.1 * gamma) for gamma in tasks]
    row = found.rows[0]
    assert row | {"steps": 0, "ci95": 0, "hyperparameters": 0} == {
        "optimizer": "descent", "kind": "classical", "task": "0.1", "curvature": 0.1, "steps": 0, "escaped": 20,
        "fraction": 1.0, "ci95": 0, "diverged": 0, "hyperparameters": 0, "schedule": None, "grid_widened": None,
        "ratios": {},
    }  # fmt: skip
    cut = measure_escapes({"descent": SGD(lr=0.1)}, tasks, horizon=1600, num_problems=20)
    assert cut.slopes == [{"optimizer": "descent", "slope": None, "ci95": [None, None]}]
    row = cut.rows[-1]
    assert row["steps"]["median"] is None and 0 < row["escaped"] < 10 and row["fraction"] == row["escaped"] / 20


def test_the_same_seeds_give_the_same_file_and_pairs_are_paired(tmp_path):
    task = Saddle(curvature=0.1)
    optimizers = {"momentum": "momentum", "ours": Momentum(lr=1.0)}
    sizes: dict[str, Any] = {"horizon": 200, "num_problems": 24, "tuning_problems": 8}
    one, again = (measure_escapes(optimizers, task, **sizes) for _ in range(2))
    assert one.to_json(tmp_path / "escapes.json") == again.to_json()
    assert json.loads((tmp_path / "escapes.json").read_text())["rows"] == json.loads(json.dumps(one.to_dict()))["rows"]
    assert one.slopes == [] and [row["kind"] for row in one.rows] == ["baseline", "classical"]
    assert one.rows[0]["ratios"] is None and one.rows[0]["curvature"] is None
    median = {row["optimizer"]: row["steps"]["median"] for row in one.rows}
    ratio = one.rows[1]["ratios"]["momentum"]
    assert ratio["median_ratio"] == median["ours"] / median["momentum"] and ratio["ci95"][0] <= ratio["median_ratio"]
    other = measure_escapes({"again": Momentum(lr=1.0)}, task, **sizes)
    assert np.array_equal(other.steps["again", task.name], one.steps["ours", task.name])
    assert "momentum" in str(one) and set(one.to_frame()["optimizer"]) == {"momentum", "ours"}
    same = one.rows[0]["hyperparameters"]
    assert measure_escapes({"tuned": Momentum(**same)}, task, **sizes).rows[0]["steps"] == one.rows[0]["steps"], (
        "the row names the hyperparameters that ran"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("adam", Quadratic()), "tasks: problems of quadratic have no test of escape; take a task such as "
         "ph_l2o.tasks.Saddle"),
        (("adam", {}), "tasks={}: must have at least one task"),
        (("adam", {0.0: Saddle()}), "tasks[0.0]: a number must be > 0 and finite (γ), or take a name"),
    ],
)  # fmt: skip
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError) as error:
        measure_escapes(*arguments)
    assert str(error.value) == message


def test_bad_sizes_and_names():
    for key, message in (("horizon", "inner steps"), ("num_problems", "test"), ("tuning_problems", "validation")):
        with pytest.raises(ValueError, match=f"{key}=0.*{message}"):
            measure_escapes("adam", Saddle(), **dict[str, Any]({key: 0}))
    with pytest.raises(ValueError, match="tuning_share=0: must be in"):
        measure_escapes("adam", Saddle(), tuning_share=0)
    with pytest.raises(ValueError, match="no baseline has this name; did you mean adam"):
        measure_escapes("adm", Saddle())
