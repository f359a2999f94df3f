"""What the learned rates are multiplied by: the size of θ, up to a bound, and a schedule."""

import math

import pytest
import torch

from ph_l2o.evaluation.runner import run_episode
from ph_l2o.meta import MetaSettings
from ph_l2o.meta.episodes import EpisodeSource
from ph_l2o.meta.validation import validate
from ph_l2o.optim import PortHamiltonian as DropIn
from ph_l2o.optimizers import Adam, PortHamiltonian, PortHamiltonianKronecker
from ph_l2o.params import Layout, Params
from ph_l2o.port_hamiltonian import schedule
from ph_l2o.tasks import Quadratic

FORMS = pytest.mark.parametrize("form", [PortHamiltonian, PortHamiltonianKronecker])
STEP = torch.arange(1.0, 301)


def blind(form):
    """An optimizer whose network says the same of everything, so that its rates are powers of natural sizes alone."""
    optimizer = form(hidden_size=4)
    with torch.no_grad():
        optimizer.controller[4].weight.zero_()
        optimizer.controller.powers.copy_(torch.tensor([0.0, 0.7]))
    return optimizer


@FORMS
def test_rates_follow_the_size_of_a_tensor_up_to_half_more_than_at_the_start(form):
    layout = Layout(("weight", "bias"), ((3, 4), (3,)))
    optimizer = blind(form)
    start = Params(torch.cat([torch.full((1, 12), 0.5), torch.zeros(1, 3)], 1), layout)
    state, grads = optimizer.init(start), start.like(torch.ones(1, 15))
    rates = []
    for growth in (1.0, 1.2, 1.5, 5.0, 1e4):
        flat = start.flat.clone()
        flat[:, :12] *= growth
        flat[:, 12:] = 0.05 * growth
        rates.append(optimizer.diagnose(start.like(flat), grads, None, state)["lr"][0])
    found = torch.stack(rates) / rates[0]
    expected = torch.tensor([[1.0, 1.2, 1.5, 1.5, 1.5], [1.0, 1.2, 1.5, 5.0, 1e4]]) ** 0.7  # a bias that starts at 0
    torch.testing.assert_close(found, expected.mT, rtol=1e-5, atol=0)


@pytest.mark.parametrize("form", ["default", "kronecker"])
def test_the_drop_in_knows_the_size_at_the_start_after_a_resume(form):
    kind = {"default": PortHamiltonian, "kronecker": PortHamiltonianKronecker}[form]

    def made():
        p = torch.full((3, 4), 0.5).requires_grad_()
        return p, DropIn([p], pretrained=blind(kind))

    def rate(p, optimizer):
        p.grad = torch.linspace(0.1, 1, 12).view(3, 4)
        optimizer.step()
        (found,) = optimizer.diagnostics()["tensors"].values()
        return found["lr"]

    p, optimizer = made()
    first = rate(p, optimizer)
    with torch.no_grad():
        p.mul_(100 * 0.5 / p.square().mean().sqrt())
    q, other = made()
    q.data.copy_(p.data)
    other.load_state_dict(optimizer.state_dict())
    assert rate(p, optimizer) / first == pytest.approx(1.5**0.7, rel=1e-4)
    assert rate(q, other) / first == pytest.approx(1.5**0.7, rel=1e-4)


def test_the_schedule_of_problems_with_lengths_of_their_own():
    totals, course = torch.tensor([0.0, 1.0, 40.0, 200.0]), schedule.Anytime(10, (200.0, 0.5))
    found = schedule.factor(STEP[:, None].expand(-1, 4), totals.expand(300, 4), course)
    for k in (1, 2, 3, 20, 40, 41, 200, 201, 300):
        anytime = (1 + (k - 1) / 200) ** -0.5 * min(1, k / 11)
        for total, value in zip(totals.tolist(), found[k - 1].tolist(), strict=True):
            rise = round(0.05 * total)
            since = k - 1 - rise
            fall = (1 - since / max(total - rise, 1)) / math.sqrt(1 + since / 500) if rise < k <= total else 0.0
            expected = anytime if total == 0 else k / (rise + 1) if k <= rise else fall
            assert value == pytest.approx(expected, abs=1e-6), (k, total)
            assert schedule.factor(float(k), total, course) == pytest.approx(value, abs=1e-6)


@FORMS
def test_an_episode_tells_its_length(form):
    optimizer = form(hidden_size=4)
    settings = MetaSettings(tell_steps=True)
    source = EpisodeSource(Quadratic(4), seed=0, num_problems=3, horizons=(20,), tell_steps=settings.tell_steps)
    where = {"rank": 0, "world_size": 1, "device": torch.device("cpu"), "dtype": torch.float32}
    episode = source.begin(0, optimizer, 20, **where)
    told, _, _ = run_episode(optimizer, episode.problem, 20)
    fixed = form(hidden_size=4, total_steps=20)
    fixed.load_state_dict(optimizer.state_dict())
    episode.problem.total_steps = None
    expected, _, _ = run_episode(fixed, episode.problem, 20)
    untold, _, _ = run_episode(optimizer, episode.problem, 20)
    assert torch.equal(told.params.flat, expected.params.flat) and not torch.equal(told.params.flat, untold.params.flat)
    with pytest.raises(ValueError, match=r"meta.tell_steps: Adam has no schedule of its own; set it to false"):
        source.begin(0, Adam(), 20, **where)


def test_validation_tells_its_horizon():
    settings = {"num_problems": 4, "horizon": 20, "seed": 0, "rank": 0, "world_size": 1}
    settings |= {"device": torch.device("cpu"), "dtype": torch.float32}
    optimizer = PortHamiltonian(hidden_size=4)
    fixed = PortHamiltonian(hidden_size=4, total_steps=20)
    fixed.load_state_dict(optimizer.state_dict())
    scores = [
        validate(made, Quadratic(4), tell_steps=tell, **settings)["val/score"].item()
        for made, tell in ((optimizer, True), (fixed, False), (optimizer, False))
    ]
    assert scores[0] == scores[1] != scores[2]
