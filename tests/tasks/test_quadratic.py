import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from ph_l2o.inner import value_and_gradient
from ph_l2o.keys import ProblemKeys, Purpose
from ph_l2o.params import Params
from ph_l2o.tasks import Quadratic, QuadraticProblem

F64 = torch.float64


def draw(indices=range(3), *, seed=0, split="train", episode=0, dtype=F64, **arguments) -> QuadraticProblem:
    arguments = {"dim": 5, **arguments}
    return Quadratic(**arguments).sample(ProblemKeys(seed, split, episode, indices), dtype=dtype)


def target(problem: QuadraticProblem) -> torch.Tensor:
    return -problem.minus_target[..., 0]


@pytest.mark.parametrize("noise", [0.0, 0.7])
@pytest.mark.parametrize("dim", [1, 2, 5, 10])
def test_loss_and_gradient_in_closed_form(dim, noise):
    problem = draw(dim=dim, noise=noise)
    for batch in problem.batches(4, 2):
        y = target(problem) if batch is None else target(problem) - batch[..., 0]
        loss, gradient, buffers = value_and_gradient(problem, problem.params, {}, batch)
        for i in range(3):
            w, theta = problem.matrix[i], problem.params.flat[i]
            residual = w @ theta - y[i]
            torch.testing.assert_close(loss[i], residual @ residual)
            torch.testing.assert_close(gradient.flat[i], 2 * w.T @ residual)
        assert buffers == {}


def test_minimum_is_zero_at_the_solution():
    problem = draw(dim=4)
    best = torch.linalg.solve(problem.matrix, target(problem))
    loss, gradient, _ = value_and_gradient(problem, problem.params.like(best), {}, None)
    torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=1e-18)
    torch.testing.assert_close(gradient.flat, torch.zeros_like(best), rtol=0, atol=1e-8)


def test_hessian_is_twice_the_gram_matrix():
    problem = draw()

    def loss_of_one(flat: torch.Tensor) -> torch.Tensor:
        return problem.loss(problem.params.like(flat), {}, None)[0].sum()

    hessian: Any = torch.autograd.functional.hessian(loss_of_one, problem.params.flat)
    for i in range(3):
        torch.testing.assert_close(hessian[i, :, i], 2 * problem.matrix[i].T @ problem.matrix[i])


def test_distribution():
    problem = draw(range(2000), dim=6)
    for values in (problem.matrix, target(problem), problem.params.flat):
        x = values.flatten().numpy()
        assert abs(x.mean()) < 5 / math.sqrt(x.size)
        assert abs(x.var() - 1) < 5 * math.sqrt(2 / x.size)
        assert abs((x**4).mean() - 3) < 5 * math.sqrt(96 / x.size)
    # E f(θ₀) = n · (E‖θ₀‖² + 1) = n² + n
    loss = problem.loss(problem.params, {}, None)[0]
    assert abs(loss.mean() - 42) < 5 * loss.std() / math.sqrt(2000)


def test_draws_keep_their_values():
    problem = draw([3], dim=2, seed=1, split="test", episode=2)
    values = torch.cat([problem.matrix.flatten(), target(problem).flatten(), problem.params.flat.flatten()])
    expected = np.random.Generator(
        np.random.Philox(key=np.array([1, 16 * 1 + 2], np.uint64), counter=np.array([0, 0, 3, 2], np.uint64))
    ).standard_normal(8)
    np.testing.assert_array_equal(values.numpy(), expected)


@pytest.mark.parametrize("arguments", [{}, {"condition_number": 50.0}], ids=["as drawn", "conditioned"])
def test_problem_is_the_same_whatever_the_batch(arguments):
    whole = draw(range(8), **arguments)
    part = draw([6, 2, 6], **arguments)
    for i, j in ((0, 6), (1, 2), (2, 6)):
        torch.testing.assert_close(part.matrix[i], whole.matrix[j], rtol=1e-14, atol=1e-14)
        assert torch.equal(target(part)[i], target(whole)[j])
        assert torch.equal(part.params.flat[i], whole.params.flat[j])


def test_every_key_gives_its_own_problem():
    problems = [draw(seed=s, split=p, episode=e) for s in (0, 1) for p in ("train", "val", "test") for e in (0, 1)]
    entries = torch.cat([p.matrix.flatten() for p in problems])
    assert len(entries.unique()) == 12 * 3 * 25


@pytest.mark.parametrize("dim", [1, 2, 7])
@pytest.mark.parametrize("condition_number", [1, 30.0, 1e4])
def test_condition_number(dim, condition_number):
    drawn, problem = draw(dim=dim), draw(dim=dim, condition_number=condition_number)
    values = torch.linalg.svdvals(problem.matrix)
    power = torch.linspace(0, 1, dim, dtype=F64)
    expected = condition_number ** (-power / 2)
    torch.testing.assert_close(values / values[:, :1], expected.expand(3, dim), rtol=1e-9, atol=0)
    if dim > 1:
        hessian = 2 * problem.matrix.mT @ problem.matrix
        torch.testing.assert_close(torch.linalg.cond(hessian), torch.full((3,), float(condition_number), dtype=F64))
    torch.testing.assert_close(problem.matrix.square().sum((1, 2)), torch.full((3,), float(dim**2), dtype=F64))
    # singular vectors, target and start are those of the problem as drawn
    u, _, vt = torch.linalg.svd(drawn.matrix)
    inner = u.mT @ problem.matrix @ vt.mT
    torch.testing.assert_close(inner, torch.diag_embed(inner.diagonal(dim1=1, dim2=2)), rtol=0, atol=1e-9)
    assert torch.equal(target(problem), target(drawn)) and torch.equal(problem.params.flat, drawn.params.flat)


@pytest.mark.parametrize("dim", [4, 5])
def test_noise_depends_on_the_step_alone(dim):
    whole = list(draw(range(4), dim=dim, noise=0.5).batches(0, 9))
    for first, count, indices in ((0, 9, [3]), (4, 3, [1, 0]), (8, 1, [2, 2])):
        part = list(draw(indices, dim=dim, noise=0.5).batches(first, count))
        assert len(part) == count
        for offset, batch in enumerate(part):
            assert torch.equal(batch, whole[first + offset][indices])


def test_noise_has_its_standard_deviation_and_is_fresh_at_the_end():
    problem = draw(range(50), dim=5, noise=0.3)
    noise = torch.stack([*problem.batches(0, 40), *problem.final_batches(40)])
    assert noise.shape == (80, 50, 5, 1) and noise.dtype == F64
    assert len(noise.unique()) == noise.numel()
    assert abs(noise.mean()) < 5 * 0.3 / math.sqrt(noise.numel())
    assert abs(noise.std() - 0.3) < 5 * 0.3 / math.sqrt(2 * noise.numel())


def test_without_noise_there_are_no_draws():
    problem = draw()
    assert not problem.stochastic and draw(noise=0.1).stochastic
    assert list(problem.batches(3, 2)) == [None, None] == list(problem.final_batches(2))


def test_noise_scales_and_leaves_the_problem_as_it_is():
    quiet, one, two = (draw(noise=noise) for noise in (0.0, 1.0, 2.0))
    assert torch.equal(quiet.matrix, one.matrix) and torch.equal(target(quiet), target(two))
    torch.testing.assert_close(2 * next(one.batches(5, 1)), next(two.batches(5, 1)))


def test_zero_start():
    zeros, normal = draw(init="zeros"), draw()
    assert (zeros.params.flat == 0).all()
    assert torch.equal(zeros.matrix, normal.matrix) and torch.equal(target(zeros), target(normal))
    torch.testing.assert_close(zeros.loss(zeros.params, {}, None)[0], target(zeros).square().sum(1))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_dtype(dtype):
    problem = draw(dtype=dtype, noise=0.1)
    assert problem.params.flat.dtype == problem.matrix.dtype == dtype
    assert next(problem.batches(0, 1)).dtype == dtype
    assert problem.loss(problem.params, {}, next(problem.batches(0, 1)))[0].dtype == dtype
    torch.testing.assert_close(problem.matrix.to(F64), draw().matrix, rtol=1e-6, atol=1e-6)


def test_interface():
    problem = draw()
    assert isinstance(problem.params, Params) and list(problem.params) == ["theta"]
    assert problem.num_problems == 3 and problem.params["theta"].shape == (3, 5)
    assert problem.test_metrics(problem.params, {}) == {}
    assert problem.keys.generator(Purpose.PROBLEM, 0)


def test_spec_says_all_that_defines_the_distribution():
    variants = [{}, {"dim": 3}, {"condition_number": 5.0}, {"noise": 0.1}, {"init": "zeros"}]
    specs = [json.dumps(Quadratic(**v).spec(), sort_keys=True) for v in variants]
    assert len(set(specs)) == len(variants)
    assert json.loads(specs[0])["class"] == "ph_l2o.tasks.quadratic.Quadratic"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "task.dim=0: must be >= 1 (number of coordinates)"),
        ({"condition_number": 0.5}, "task.condition_number=0.5: must be >= 1 and finite (null keeps W as drawn)"),
        ({"condition_number": math.nan}, "task.condition_number=nan: must be >= 1 and finite (null keeps W as drawn)"),
        ({"condition_number": math.inf}, "task.condition_number=inf: must be >= 1 and finite (null keeps W as drawn)"),
        ({"noise": -0.1}, "task.noise=-0.1: must be >= 0 and finite (standard deviation)"),
        ({"noise": math.nan}, "task.noise=nan: must be >= 0 and finite (standard deviation)"),
        ({"noise": math.inf}, "task.noise=inf: must be >= 0 and finite (standard deviation)"),
        ({"init": "ones"}, "task.init=ones: must be one of normal, zeros"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError) as error:
        Quadratic(**arguments)
    assert str(error.value) == message
