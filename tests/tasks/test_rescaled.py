import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ph_l2o.inner import run, value_and_gradient
from ph_l2o.keys import ProblemKeys, Purpose
from ph_l2o.optimizers import Adam, PortHamiltonian
from ph_l2o.params import Params
from ph_l2o.tasks import Problem, Quadratic, rescaled

F64 = torch.float64
KEYS = ProblemKeys(0, "train", 0, range(3))


class TwoTensors(Problem):
    """Two tensors and a buffer, with all the features that re-scaling hands on."""

    stochastic = True

    def __init__(self, keys: ProblemKeys = KEYS):
        self.keys = keys
        draws = np.stack([keys.generator(Purpose.PROBLEM, i).standard_normal(7) for i in keys.indices])
        flat = torch.from_numpy(draws)
        self.params = Params.from_tensors({"a": flat[:, :6].reshape(-1, 2, 3), "b": flat[:, 6]})
        self.buffers = {"count": torch.zeros(len(keys), dtype=torch.int64)}

    def batches(self, first, count):
        return iter(torch.arange(first, first + count, dtype=F64))

    def final_batches(self, count):
        return iter(-torch.arange(1, 1 + count, dtype=F64))

    def loss(self, params, buffers, batch):
        value = (params["a"].pow(4).sum((1, 2)) + 1) * (params["b"] - 0.1 * batch).square()
        return value, {"count": buffers["count"] + 1}

    def test_metrics(self, params, buffers):
        return {"size": params["a"].abs().sum((1, 2)), "count": buffers["count"]}


def test_loss_and_gradient_follow_the_chain_rule():
    plain = TwoTensors()
    problem = rescaled(plain, 0.9)
    torch.testing.assert_close(problem.original(problem.params).flat, plain.params.flat)
    torch.manual_seed(1)
    there = plain.params.like(torch.randn(3, 7, dtype=F64))
    here = there.like(there.flat / problem.scale)
    batch = next(problem.batches(4, 1))
    loss, gradient, buffers = value_and_gradient(problem, here, problem.buffers, batch)
    expected, original, _ = value_and_gradient(plain, there, plain.buffers, batch)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient.flat, original.flat * problem.scale)
    assert (buffers["count"] == 1).all()


@pytest.mark.parametrize("log_scale", [0.3, 2.0])
def test_one_scale_for_each_tensor_of_each_problem_within_the_range(log_scale):
    keys = ProblemKeys(0, "train", 0, range(500))
    problem = rescaled(TwoTensors(keys), log_scale)
    logs = problem.scale.log()
    assert logs.shape == (500, 7)
    assert (logs[:, :6] == logs[:, :1]).all()
    per_tensor = logs[:, [0, 6]].flatten()
    assert len(per_tensor.unique()) == 1000
    assert per_tensor.abs().max() <= log_scale * (1 + 1e-12)
    assert per_tensor.max() > 0.98 * log_scale and per_tensor.min() < -0.98 * log_scale
    assert abs(per_tensor.mean()) < 5 * log_scale / math.sqrt(3000)
    assert abs(per_tensor.var() - log_scale**2 / 3) < 0.1 * log_scale**2


def test_no_scale_is_the_problem_itself():
    plain = TwoTensors()
    problem = rescaled(plain, 0.0)
    assert (problem.scale == 1).all() and torch.equal(problem.params.flat, plain.params.flat)


def test_scales_depend_on_the_key_alone():
    def scales(indices, seed=0, split="train", episode=0) -> Tensor:
        return rescaled(TwoTensors(ProblemKeys(seed, split, episode, indices)), 1.0).scale

    whole = scales(range(6))
    assert torch.equal(scales([5, 1, 5]), whole[[5, 1, 5]])
    others = [scales(range(6), 1), scales(range(6), 0, "val"), scales(range(6), 0, "train", 1)]
    assert len(torch.cat([whole, *others])[:, [0, 6]].unique()) == 48


def test_hands_on_draws_buffers_and_metrics():
    plain = TwoTensors()
    problem = rescaled(plain, 0.9)
    assert problem.stochastic and problem.keys is plain.keys and problem.num_problems == 3
    assert problem.params.layout is plain.params.layout
    assert list(problem.batches(2, 3)) == list(plain.batches(2, 3))
    assert list(problem.final_batches(3)) == list(plain.final_batches(3))
    metrics = problem.test_metrics(problem.params, problem.buffers)
    for name, value in plain.test_metrics(plain.params, plain.buffers).items():
        torch.testing.assert_close(metrics[name], value)


def test_runs_in_the_inner_loop():
    torch.manual_seed(0)
    carry, losses = run(PortHamiltonian(hidden_size=4).double(), rescaled(TwoTensors(), 0.5), 3)
    assert losses.isfinite().all() and (carry.buffers["count"] == 3).all()


def test_adam_in_other_units_takes_other_steps():
    plain = Quadratic(4).sample(KEYS, dtype=F64)
    problem = rescaled(plain, 1.0)
    adam = Adam(lr=0.1)
    (there, expected), (here, losses) = run(adam, plain, 5), run(adam, problem, 5)
    torch.testing.assert_close(losses[0], expected[0])
    assert not torch.allclose(losses[-1], expected[-1])
    # One tensor: Adam's steps are of size lr in the problem's own units, so lr · scale in the original ones.
    moved = problem.original(here.params).flat - plain.params.flat
    assert (moved.abs() <= 0.1 * 5 * 1.01 * problem.scale).all()
    assert there.params.flat.shape == moved.shape


def test_second_derivative():
    problem = rescaled(TwoTensors(), 0.7)

    def loss(flat: Tensor) -> Tensor:
        return problem.loss(problem.params.like(flat), problem.buffers, 2.0)[0]

    flat = problem.params.flat.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(loss, flat)


@pytest.mark.parametrize("log_scale", [-0.1, math.nan, math.inf])
def test_bad_argument(log_scale):
    with pytest.raises(ValueError) as error:
        rescaled(TwoTensors(), log_scale)
    assert str(error.value) == f"meta.rescale={log_scale}: must be >= 0 and finite"
