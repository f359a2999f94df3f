"""The average of the iterates: its closed form, torch's AveragedModel, and that the iterates stay what they are."""

import math

import pytest
import torch
from test_classical import LAYOUTS, quadratics
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ph_l2o import recipes
from ph_l2o.inner import run as run_episode
from ph_l2o.keys import ProblemKeys
from ph_l2o.optim import from_learned
from ph_l2o.optimizers import (
    LSTM,
    Adam,
    Averaged,
    PortHamiltonian,
    PortHamiltonianKronecker,
    Scheduled,
    ScheduleFreeAdamW,
)
from ph_l2o.tasks import Quadratic

pytestmark = pytest.mark.usefixtures("float64")
STEPS = 40


def iterates(optimizer, start, matrix, offset):
    """θ_1 … θ_T, and what is read out after each step."""
    params, state, found, averages = start, optimizer.init(start), [], []
    assert torch.equal(optimizer.readout(params, state).flat, start.flat)
    for _ in range(STEPS):
        gradient = torch.einsum("bij,bj->bi", matrix, params.flat) - offset
        loss = 0.5 * (params.flat * (gradient - offset)).sum(1).abs()
        params, state = optimizer.update(params, params.like(gradient), loss, state)
        found.append(params.flat)
        averages.append(optimizer.readout(params, state).flat)
    return found, averages


def closed_form(found, power):
    """Σ w_k θ_k / Σ w_k with w_k = Γ(k + η) / Γ(k), which grows as k^η; rising factorials, summed exactly."""
    weights = [math.exp(math.lgamma(k + power) - math.lgamma(k)) for k in range(1, len(found) + 1)]
    return sum(w * x for w, x in zip(weights, found, strict=True)) / math.fsum(weights)


@pytest.mark.parametrize("power", [0, 1, 2.5, 8])
@pytest.mark.parametrize("make", [Adam, LSTM, PortHamiltonian, PortHamiltonianKronecker])
def test_the_average_has_its_closed_form_and_changes_no_step(make, power):
    start, matrix, offset = quadratics(LAYOUTS[1])
    torch.manual_seed(0)
    inner = make()
    found, averages = iterates(Averaged(inner, power=power), start, matrix, offset)
    plain, same = iterates(inner, start, matrix, offset)
    assert all(map(torch.equal, found, plain)) and all(map(torch.equal, plain, same))
    for k in (1, 2, 7, STEPS):
        torch.testing.assert_close(averages[k - 1], closed_form(found[:k], power), rtol=1e-12, atol=1e-14)
    assert not torch.allclose(averages[-1], found[-1], rtol=1e-6, atol=0)


def test_the_average_is_torchs():
    start, matrix, offset = quadratics(LAYOUTS[0])
    found, averages = iterates(Averaged(Adam(lr=0.1), power=3), start, matrix, offset)
    model = nn.ParameterList([start.flat.clone()])

    def average(averaged, current, count):
        for mean, x in zip(averaged, current, strict=True):
            mean.lerp_(x, 4 / (count + 4))  # count is that of the iterates before

    theirs = AveragedModel(model, multi_avg_fn=average)
    for x, ours in zip(found, averages, strict=True):
        model[0].data.copy_(x)
        theirs.update_parameters(model)
        torch.testing.assert_close(theirs.module[0].data, ours, rtol=1e-12, atol=1e-14)


def test_losses_are_those_of_the_average():
    problem = Quadratic(3).sample(ProblemKeys(0, "val", 0, range(2)), dtype=torch.float64)
    optimizer = Averaged(Adam(lr=0.1))
    carry, losses = run_episode(optimizer, problem, 20)
    loss, _ = problem.loss(problem.params.like(carry.state.average), {}, None)
    assert torch.equal(losses[-1], loss)
    assert not torch.allclose(losses[-1], problem.loss(carry.params, {}, None)[0], rtol=1e-3)


def test_what_it_wraps_shows_through():
    start, matrix, offset = quadratics(LAYOUTS[1])
    optimizer = Averaged(Scheduled(Adam(), "cosine", horizon=STEPS), power=3)
    tuned = optimizer.with_hyperparameters(lr=0.25)
    assert tuned.hyperparameters["lr"].item() == pytest.approx(0.25) and optimizer.grid == Adam.grid
    assert tuned.power == 3 and optimizer.hyperparameters["lr"].item() != pytest.approx(0.25)
    assert not hasattr(Averaged(LSTM()), "hyperparameters")
    _, averages = iterates(recipes.construct(optimizer.recipe), start, matrix, offset)
    assert torch.equal(averages[-1], iterates(optimizer, start, matrix, offset)[1][-1])
    hidden = Averaged(PortHamiltonian())
    assert not hidden.hide_loss(
        hidden.init(start), torch.ones(start.num_problems, dtype=torch.bool)
    ).inner.uses_loss.any()
    assert "energy" in hidden.diagnose(start, start, None, hidden.init(start))


def test_in_a_drop_in_steps_are_those_of_what_it_wraps():
    torch.manual_seed(0)
    models = [nn.Linear(3, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [from_learned(x)(m.parameters()) for x, m in zip((Adam(), Averaged(Adam())), models, strict=True)]
    for model, optimizer in zip(models, optimizers, strict=True):
        for k in range(5):
            model.zero_grad()
            (model(torch.full((2, 3), 1.0 + k)) - 1).square().mean().backward()
            optimizer.step()
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Averaged(Adam(), power=-1), r"optimizer.power=-1: must be >= 0"),
        (lambda: Averaged(Adam(), power=math.inf), r"optimizer.power=inf: must be >= 0 and finite"),
        (lambda: Averaged(Averaged(Adam())), r"optimizer.optimizer=Averaged: averages already"),
        (lambda: Averaged(ScheduleFreeAdamW()), r"optimizer.optimizer=ScheduleFreeAdamW: averages already"),
        (lambda: Scheduled(Averaged(Adam()), horizon=3), r"optimizer.optimizer=Averaged: .*put the schedule inside"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
