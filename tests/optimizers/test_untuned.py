"""NAdamW against torch's, schedule-free AdamW and Prodigy against their authors' packages."""

import pytest
import torch
from test_classical import LAYOUTS, STEPS, quadratics, run
from test_scheduled import constant, cosine, run_torch
from torch.optim import NAdam

from ph_l2o.inner import run as run_episode
from ph_l2o.keys import ProblemKeys
from ph_l2o.optimizers import NAdamW, Prodigy, Scheduled, ScheduleFreeAdamW
from ph_l2o.tasks import Quadratic

pytestmark = pytest.mark.usefixtures("float64")


def run_ours(optimizer, scheduler, start, matrix, offset):
    if scheduler is cosine:
        optimizer = Scheduled(optimizer, "cosine", horizon=STEPS)
    return run(optimizer, start, matrix, offset)


@pytest.mark.parametrize("scheduler", [constant, cosine])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nadamw_is_torchs(layout, scheduler):
    start, matrix, offset = quadratics(layout)
    values = {"lr": 0.002, "weight_decay": 0.1, "momentum_decay": 0.01, "eps": 0.1}  # so that nothing oscillates

    def make(tensors):
        return NAdam(tensors, betas=(0.8, 0.97), decoupled_weight_decay=True, **values)

    ours = run_ours(NAdamW(beta1=0.8, beta2=0.97, **values), scheduler, start, matrix, offset) - start.flat
    theirs = run_torch(make, scheduler, start, matrix, offset) - start.flat
    assert theirs.abs().min() > 1e-4
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("scheduler", [constant, cosine])
def test_prodigy_is_its_authors(scheduler):
    package = pytest.importorskip("prodigyopt", exc_type=ImportError)
    start, matrix, offset = quadratics(LAYOUTS[1])
    optimizer = Prodigy(weight_decay=0.05)
    optimizer.eps.fill_(1e-3)

    def make(tensors):
        return package.Prodigy(tensors, weight_decay=0.05, eps=1e-3, safeguard_warmup=True)

    ours = run_ours(optimizer, scheduler, start, matrix, offset) - start.flat
    theirs = run_torch(make, scheduler, start, matrix, offset) - start.flat
    assert theirs.abs().max() > 1e-2, "the estimate of the distance has grown"
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("scheduler", [constant, cosine])
def test_schedule_free_is_its_authors(scheduler):
    package = pytest.importorskip("schedulefree", exc_type=ImportError)
    start, matrix, offset = quadratics(LAYOUTS[1])
    values = {"lr": 0.02, "weight_decay": 0.1}
    made = []

    def make(tensors):
        made.append(package.AdamWScheduleFree(tensors, betas=(0.8, 0.97), **values))
        made[-1].train()
        return made[-1]

    optimizer = ScheduleFreeAdamW(beta1=0.8, beta2=0.97, **values)
    ours = run_ours(optimizer, scheduler, start, matrix, offset) - start.flat
    theirs = run_torch(make, scheduler, start, matrix, offset) - start.flat
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_what_schedule_free_reads_out_is_the_average():
    package = pytest.importorskip("schedulefree", exc_type=ImportError)
    problem = Quadratic(3).sample(ProblemKeys(0, "val", 0, range(1)), dtype=torch.float64)
    carry, losses = run_episode(ScheduleFreeAdamW(lr=0.1), problem, 20)
    theta = problem.params.flat[0].clone().requires_grad_()
    optimizer, expected = package.AdamWScheduleFree([theta], lr=0.1), []
    for batch in problem.batches(0, 21):

        def loss(batch=batch):
            return problem.loss(problem.params.like(theta[None]), {}, batch)[0].sum()

        optimizer.eval()
        expected.append(loss().item())
        optimizer.train()
        (theta.grad,) = torch.autograd.grad(loss(), theta)
        optimizer.step()
    assert losses[:, 0].tolist() == pytest.approx(expected)
    assert carry.params.flat[0].tolist() != pytest.approx(theta.tolist())


def test_prodigy_waits_for_a_gradient():
    start, *_ = quadratics(LAYOUTS[0])
    optimizer = Prodigy()
    params, state = optimizer.update(start, start.like(torch.zeros_like(start.flat)), None, optimizer.init(start))
    assert torch.equal(params.flat, start.flat) and torch.isfinite(state.distance).all()


@pytest.mark.parametrize("cls", [NAdamW, Prodigy, ScheduleFreeAdamW])
def test_a_batch_is_its_problems(cls):
    start, matrix, offset = quadratics(LAYOUTS[1])
    both = run(cls(), start, matrix, offset)
    alone = run(cls(), type(start)(start.flat[1:2], start.layout), matrix[1:2], offset[1:2])
    torch.testing.assert_close(both[1:2], alone)
