"""Meta-training on a mixture of tasks."""

import csv
import math

import pytest
import torch

from ph_l2o.commands.validate import check_start
from ph_l2o.errors import ConfigError
from ph_l2o.inner import run
from ph_l2o.keys import ProblemKeys
from ph_l2o.meta import meta_train
from ph_l2o.meta.score import relative_score
from ph_l2o.optimizers import Adam
from ph_l2o.tasks import Landscape, Mixture, Quadratic

SMALL = {
    "outer_steps": 6, "num_problems": 2, "horizons": (3, 6), "val_every": 3, "val_problems": 9, "val_horizon": 4,
}  # fmt: skip


class Recorded(Quadratic):
    """Remembers whose problems were drawn."""

    def __init__(self, dim: int, **arguments):
        super().__init__(dim, **arguments)
        self._drawn: list[ProblemKeys] = []

    def sample(self, keys, **where):
        self._drawn.append(keys)
        return super().sample(keys, **where)


def mixture() -> Mixture:
    return Mixture({"two": Recorded(2), "three": Recorded(3), "saddle": Landscape("saddle", 4), "one": Recorded(1)})


def test_a_validation_covers_all_members(tmp_path):
    task = mixture()
    trained = meta_train(Adam(), task, truncation=3, compile=False, output_dir=tmp_path, **SMALL)
    assert isinstance(trained, Adam)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert len(rows) == 6
    for row in (rows[2], rows[5]):
        for name in task.tasks:
            for key in ("final_loss", "auc", "diverged_frac"):
                assert math.isfinite(float(row[f"val/{name}/{key}"]))
        assert math.isfinite(float(row["val/score"]))
    drawn = [k for t in task.tasks.values() if isinstance(t, Recorded) for k in t._drawn if k.split == "val"]
    assert {tuple(k.indices) for k in drawn} == {(0, 1)}  # 9 problems for 4 members
    trained_on = {n for e in range(4) for n in [task.choose(ProblemKeys(0, "train", e, range(2)))]}
    assert trained_on == set(task.tasks)
    # The score, from its definition, of the weights that the last validation saw.
    scores = []
    for member in task.tasks.values():
        losses = run(trained, member.sample(ProblemKeys(0, "val", 0, range(2))), 4)[1].double()
        scores.append(((losses[1:] + 1e-4 * losses[0]) / losses[0]).log().mean())
    best = min(float(row["val/score"]) for row in (rows[2], rows[5]))
    assert math.isclose(float(torch.stack(scores).mean()), best, rel_tol=1e-5)


def test_relative_scores_do_not_depend_on_units_and_stay_finite():
    torch.manual_seed(0)
    losses = torch.rand(10, 4, dtype=torch.float64) + 0.1
    torch.testing.assert_close(relative_score(losses * torch.tensor([1e-6, 1.0, 1e3, 1e9])), relative_score(losses))
    worst = math.log(1e4)
    for bad in (math.nan, math.inf, 1e30):
        assert math.isclose(float(relative_score(torch.tensor([[1.0], [bad]]))), worst, rel_tol=1e-6)
    solved = torch.tensor([[1.0], [0.0]])
    assert math.isclose(float(relative_score(solved)), -worst, rel_tol=1e-6)
    assert float(relative_score(torch.zeros(3, 2))) == 0
    assert math.isclose(float(relative_score(torch.tensor([[4.0], [2.0]]))), math.log(0.5001), rel_tol=1e-6)


class Broken(Quadratic):
    def sample(self, keys, **where):
        problem = super().sample(keys, **where)
        problem.matrix = problem.matrix * torch.nan
        return problem


def test_the_start_of_every_member_is_checked():
    check_start(mixture(), 0)
    with pytest.raises(ConfigError, match=r"^task=mixture\.broken: the loss at the start θ₀ is nan; must be finite"):
        check_start(Mixture({"fine": Quadratic(2), "broken": Broken(3)}), 0)
