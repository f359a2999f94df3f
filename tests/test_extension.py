"""A task and an optimizer from outside of the package, in a module that the package has never seen."""

import sys
import textwrap
from types import ModuleType

import pytest
import torch

import ph_l2o
from ph_l2o.commands.instantiate import build
from ph_l2o.errors import ConfigError
from ph_l2o.evaluation import compare
from ph_l2o.inner import run
from ph_l2o.keys import ProblemKeys

SOURCE = '''
    """A task and an optimizer of a user."""

    from typing import NamedTuple

    import numpy as np
    import torch
    from torch import Tensor, nn

    from ph_l2o.optimizers import LearnedOptimizer
    from ph_l2o.params import Params
    from ph_l2o.keys import ProblemKeys, Purpose
    from ph_l2o.tasks import ModuleProblem, Problem, Task


    class Rosenbrock(Task):
        """Sum of a (y - x²)² + (1 - x)² over pairs, with a drawn for each problem."""

        def __init__(self, pairs: int = 2, *, name: str = "rosenbrock"):
            if pairs < 1:
                raise ValueError(f"task.pairs={pairs}: must be >= 1")
            self.pairs, self.name = pairs, name

        def sample(self, keys, *, device="cpu", dtype=torch.float32):
            draws = np.stack([keys.generator(Purpose.PROBLEM, i).random(1 + 2 * self.pairs) for i in keys.indices])
            return RosenbrockProblem(keys, torch.from_numpy(draws).to(device=device, dtype=dtype))


    class RosenbrockProblem(Problem):
        def __init__(self, keys: ProblemKeys, draws: Tensor):
            self.keys, self.steepness = keys, 1 + 4 * draws[:, :1]
            pairs = draws[:, 1:].unflatten(1, (2, -1))
            self.params = Params.from_tensors({"x": pairs[:, 0], "y": pairs[:, 1]})

        def loss(self, params, buffers, batch):
            x, y = params["x"], params["y"]
            return (self.steepness * (y - x**2) ** 2 + (1 - x) ** 2).sum(1), buffers


    class Regression(Task):
        """Fit a small network to its own random teacher."""

        name = "regression"

        def sample(self, keys, *, device="cpu", dtype=torch.float32):
            return RegressionProblem(keys, device=device, dtype=dtype)


    class RegressionProblem(ModuleProblem):
        stochastic = True

        def __init__(self, keys, *, device, dtype):
            super().__init__(keys, self.make, device=device, dtype=dtype)
            self.teacher = self.params.like(self.params.flat.roll(1, 1))

        @staticmethod
        def make():
            return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 1))

        def batches(self, first, count):
            words = self.keys.words(Purpose.BATCH, first, count, 8)
            return iter(torch.from_numpy(words / 2.0**64).to(self.params.flat).unflatten(2, (4, 2)))

        def loss(self, params, buffers, batch):
            targets, _ = self.outputs(self.teacher, self.buffers, batch)
            outputs, buffers = self.outputs(params, buffers, batch)
            return (outputs - targets).square().mean((1, 2)), buffers

        def test_metrics(self, params, buffers):
            return {"size": params.flat.norm(dim=1)}


    class State(NamedTuple):
        velocity: Tensor


    class Learned(LearnedOptimizer):
        """Gradient descent with a learned rate and a learned momentum for each tensor's mean gradient."""

        def __init__(self, rate: float = 0.05):
            super().__init__()
            self.log_rate, self.mix = nn.Parameter(torch.tensor(rate).log()), nn.Parameter(torch.tensor(0.0))

        def init(self, params):
            return State(torch.zeros_like(params.flat))

        def update(self, params, grads, loss, state):
            velocity = torch.lerp(state.velocity, grads.flat, self.mix.sigmoid())
            shared = grads.layout.expand(grads.layout.sum(velocity).tanh())
            return params.like(params.flat - self.log_rate.exp() * (velocity + 0.01 * shared)), State(velocity)
'''
SETTINGS = {"num_problems": 2, "horizons": (4,), "val_every": 2, "val_problems": 2, "val_horizon": 3}


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "outside.py").write_text(textwrap.dedent(SOURCE))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setitem(sys.modules, "outside", ModuleType("outside"))  # so that it is gone after the tests
        del sys.modules["outside"]
        yield


def make(name: str, key: str, **arguments):
    return build({"_target_": f"outside.{name}", **arguments}, key, plugins=["outside"])


@pytest.mark.parametrize("task", ["Rosenbrock", "Regression"])
def test_meta_trains_and_compares(outside, task, tmp_path):
    task, optimizer = make(task, "task"), make("Learned", "optimizer", rate=0.1)
    trained = ph_l2o.meta_train(optimizer, task, outer_steps=2, truncation=2, output_dir=tmp_path, **SETTINGS)
    assert type(trained) is type(optimizer)
    assert not torch.equal(trained.log_rate, optimizer.log_rate)
    assert torch.isfinite(trained.log_rate) and torch.isfinite(trained.mix)

    optimizers = {"trained": trained, "start": optimizer, "adam": "adam"}
    comparison = compare(
        optimizers, task, horizon=3, num_problems=4, tuning_problems=2, grids={"adam": {"lr": (0.01, 0.1)}}
    )
    assert [row["optimizer"] for row in comparison.rows] == ["trained", "start", "adam"]
    assert comparison.best_baseline == "adam" and comparison.task == task.name
    assert all(len(finals) == 4 for finals in comparison.finals.values())
    assert "trained" in str(comparison) and comparison.to_json(tmp_path / "comparison.json")


@pytest.mark.parametrize("task", ["Rosenbrock", "Regression"])
def test_runs_with_every_optimizer_of_the_package(outside, task):
    task = make(task, "task")
    problem = task.sample(ProblemKeys(0, "train", 0, range(2)))
    torch.manual_seed(0)
    for optimizer in (ph_l2o.optimizers.PortHamiltonian(hidden_size=4), ph_l2o.optimizers.LSTM(), make("Learned", "")):
        assert run(optimizer, problem, 3)[1].isfinite().all()


def test_optimizer_runs_on_tasks_of_the_package(outside):
    task = ph_l2o.tasks.Quadratic(3)
    comparison = compare({"mine": make("Learned", "optimizer")}, task, horizon=3, num_problems=2)
    assert comparison.rows[0]["optimizer"] == "mine"


def test_arguments_are_checked(outside):
    assert make("Rosenbrock", "task", pairs=3).spec() == {
        "class": "outside.Rosenbrock",
        "pairs": 3,
        "name": "rosenbrock",
    }
    with pytest.raises(ConfigError, match=r"task.pairs=two: must be a whole number"):
        make("Rosenbrock", "task", pairs="two")
    with pytest.raises(ValueError, match=r"task.pairs=0: must be >= 1"):
        make("Rosenbrock", "task", pairs=0)


def test_needs_to_be_allowed(outside):
    with pytest.raises(ConfigError, match=r"allow another module with 'plugins=\[outside\]'"):
        build({"_target_": "outside.Rosenbrock"}, "task")
