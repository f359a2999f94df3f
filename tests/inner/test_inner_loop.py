"""The inner loop: what loss_k is, continued episodes, gradients."""

import pytest
import torch

from ph_l2o.inner import final_loss, run, start, value_and_gradient
from ph_l2o.keys import ProblemKeys
from ph_l2o.optimizers import SGD, PortHamiltonian
from ph_l2o.tasks import Quadratic

KEYS = ProblemKeys(0, "test", 0, range(3))


def test_losses_are_those_of_plain_gradient_descent():
    problem = Quadratic(4).sample(KEYS, dtype=torch.float64)
    theta = problem.params.flat.clone()
    _, losses = run(SGD(lr=0.01).double(), problem, 5)
    for k in range(6):
        residual = torch.einsum("bij,bj->bi", problem.matrix, theta) + problem.minus_target[..., 0]
        torch.testing.assert_close(losses[k], residual.square().sum(1), rtol=1e-6, atol=0)
        theta = theta - 0.01 * 2 * torch.einsum("bij,bi->bj", problem.matrix, residual)


def test_an_episode_in_two_parts_is_the_same_episode(monkeypatch):
    problem = Quadratic(4, noise=0.3).sample(KEYS)
    optimizer = PortHamiltonian()
    with monkeypatch.context() as patch:
        patch.setattr("ph_l2o.inner.loop._DRAWN_AT_ONCE", 4)
        carry, whole = run(optimizer, problem, 9)
    half, first = run(optimizer, problem, 5)
    end, second = run(optimizer, problem, 4, carry=half, first=5)
    assert torch.equal(torch.cat([first, second[1:]]), whole)
    assert torch.equal(end.params.flat, carry.params.flat)


def test_gradient_is_that_of_autograd_and_leaves_inputs_alone():
    problem = Quadratic(4).sample(KEYS, dtype=torch.float64)
    before = problem.params.flat.clone()
    loss, gradient, _ = value_and_gradient(problem, problem.params, {}, None)
    leaf = before.clone().requires_grad_()
    value, _ = problem.loss(problem.params.like(leaf), {}, None)
    value.sum().backward()
    assert torch.equal(problem.params.flat, before) and not problem.params.flat.requires_grad
    torch.testing.assert_close(gradient.flat, leaf.grad)
    assert torch.equal(loss, value) and not loss.requires_grad and not gradient.flat.requires_grad


def test_final_loss_is_a_mean_over_fresh_batches():
    problem = Quadratic(4, noise=0.5).sample(KEYS)
    carry, losses = run(SGD(lr=0.01), problem, 3)
    fresh = [problem.loss(carry.params, {}, batch)[0] for batch in problem.final_batches(10)]
    assert torch.equal(final_loss(problem, carry, losses[-1]), torch.stack(fresh).mean(0))
    assert not torch.equal(final_loss(problem, carry, losses[-1]), losses[-1])
    quiet = Quadratic(4).sample(KEYS)
    carry, losses = run(SGD(lr=0.01), quiet, 3)
    assert final_loss(quiet, carry, losses[-1]) is losses[-1] or torch.equal(
        final_loss(quiet, carry, losses[-1]), losses[-1]
    )


@pytest.mark.parametrize("needs_grad", [True, False])
def test_run_keeps_no_graph(needs_grad):
    optimizer = PortHamiltonian().requires_grad_(needs_grad)
    carry, losses = run(optimizer, Quadratic(3).sample(KEYS), 4)
    assert not losses.requires_grad and not carry.params.flat.requires_grad
    assert not any(x.requires_grad for x in carry.state)


def test_detached_carry_has_no_graph():
    problem = Quadratic(3).sample(KEYS)
    optimizer = PortHamiltonian()
    carry = start(optimizer, problem)
    loss, gradient, _ = value_and_gradient(problem, carry.params, {}, None)
    params, state = optimizer.update(carry.params, gradient, loss, carry.state)
    moved = carry._replace(params=params, state=state)
    assert moved.params.flat.requires_grad
    assert not any(x.requires_grad for x in (moved.detach().params.flat, *moved.detach().state))
