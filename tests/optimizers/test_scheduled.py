"""Schedules against torch.optim under torch's own schedulers."""

import functools
import itertools
import math

import pytest
import torch
from test_classical import LAYOUTS, PAIRS, STEPS, quadratics, run
from torch import Tensor
from torch.func import functional_call, vmap
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, LRScheduler, SequentialLR

from ph_l2o import recipes
from ph_l2o.optimizers import LSTM, SGD, AdamW, Muon, Scheduled, register_schedule
from ph_l2o.optimizers.scheduled import SCHEDULES
from ph_l2o.params import Layout, Params

pytestmark = pytest.mark.usefixtures("float64")
W = 5  # of 100 steps


def warmed_up(optimizer: torch.optim.Optimizer, rest: LRScheduler) -> LRScheduler:
    return SequentialLR(optimizer, [LinearLR(optimizer, 1 / (W + 1), 1, W), rest], [W])


def cosine(optimizer: torch.optim.Optimizer) -> LRScheduler:
    return warmed_up(optimizer, CosineAnnealingLR(optimizer, STEPS - W))


def linear(optimizer: torch.optim.Optimizer) -> LRScheduler:
    return warmed_up(optimizer, LinearLR(optimizer, 1, 0, STEPS - W))


def constant(optimizer: torch.optim.Optimizer) -> LRScheduler:
    return LambdaLR(optimizer, lambda k: 1.0)


def cosine_to_a_tenth(optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Without warm-up; by the closed form, since torch's own one, a recursion, differs from it by 1e-10 here."""
    return LambdaLR(optimizer, lambda k: 0.1 + 0.9 * (1 + math.cos(math.pi * k / STEPS)) / 2)


SCHEDULERS = {
    "cosine": (cosine, {}),
    "linear": (linear, {}),
    "constant": (constant, {}),
    "a tenth": (cosine_to_a_tenth, {"schedule": "cosine", "warm_up": 0.0, "final": 0.1}),
}


def run_torch(make, scheduler, start: Params, matrix: Tensor, offset: Tensor) -> Tensor:
    rows = []
    for i in range(start.num_problems):
        tensors = [t[i].clone().requires_grad_() for t in start.tensors().values()]
        optimizer = make(tensors)
        schedule = scheduler(optimizer)
        for _ in range(STEPS):
            flat = torch.cat([t.detach().flatten() for t in tensors])
            for t, g in zip(tensors, (matrix[i] @ flat - offset[i]).split(start.layout.sizes), strict=True):
                t.grad = g.view_as(t)
            optimizer.step()
            schedule.step()
        rows.append(torch.cat([t.detach().flatten() for t in tensors]))
    return torch.stack(rows)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize(("cls", "arguments", "make"), PAIRS, ids=lambda x: getattr(x, "__name__", ""))
def test_matches_torch(cls, arguments, make, name):
    scheduler, options = SCHEDULERS[name]
    start, matrix, offset = quadratics(LAYOUTS[1])
    optimizer = Scheduled(cls(**arguments), **{"schedule": name, **options}, horizon=STEPS)
    ours = run(optimizer, start, matrix, offset) - start.flat
    theirs = run_torch(make, scheduler, start, matrix, offset) - start.flat
    assert theirs.abs().min() > 1e-4
    # CosineAnnealingLR makes each rate of the last one, and loses up to 1e-10 of it that way.
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_muon_matches_torch(name, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)  # torch's own code, in float64 throughout
    start, matrix, offset = quadratics(Layout(("wide", "square"), ((2, 3), (3, 3))))
    settings = {"lr": 0.003, "momentum": 0.9, "weight_decay": 0.3}
    optimizer = Scheduled(Muon(**settings), name, horizon=STEPS)
    ours = run(optimizer, start, matrix, offset) - start.flat
    make = functools.partial(torch.optim.Muon, **settings, adjust_lr_fn="original")
    theirs = run_torch(make, SCHEDULERS[name][0], start, matrix, offset) - start.flat
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_the_factor_over_an_episode():
    f = Scheduled(SGD(), "linear", horizon=100).factor(torch.arange(120.0))
    assert f[:7].tolist() == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1 - 1 / 95])
    assert f[99] == pytest.approx(1 / 95) and (f[100:] == 0).all()
    short = Scheduled(SGD(), "cosine", horizon=3).factor(torch.arange(5.0))  # no step of warm-up
    assert short.tolist() == pytest.approx([1, 0.75, 0.25, 0, 0])
    assert Scheduled(SGD(), "cosine", horizon=1).factor(torch.arange(2.0)).tolist() == [1, 0]


def test_constant_is_the_optimizer_bit_for_bit():
    start, matrix, offset = quadratics(LAYOUTS[1])
    plain = run(AdamW(lr=0.1), start, matrix, offset)
    assert torch.equal(run(Scheduled(AdamW(lr=0.1), "constant", horizon=7), start, matrix, offset), plain)


def test_one_batch_with_different_schedules_and_learning_rates():
    start, matrix, offset = quadratics(LAYOUTS[1])
    names, rates = ("constant", "cosine", "linear"), torch.tensor([0.01, 0.2, 0.05])
    several = Scheduled(AdamW(), names, horizon=10)
    assert several.grid["schedule"] == (0, 1, 2) and several.grid["lr"] == AdamW.grid["lr"]
    batched = several.with_hyperparameters(schedule=torch.tensor([2, 0, 1]), lr=rates)
    together = run(batched, start, matrix, offset, steps=10)
    for i, number in enumerate((2, 0, 1)):
        alone = Scheduled(AdamW(lr=rates[i].item()), names[number], horizon=10)
        expected = run(alone, Params(start.flat[i : i + 1], LAYOUTS[1]), matrix[i : i + 1], offset[i : i + 1], steps=10)
        torch.testing.assert_close(together[i : i + 1], expected, rtol=1e-12, atol=0)
    assert several.with_hyperparameters(schedule=1.0).schedule == "cosine" and several.schedule == "constant"


def test_under_vmap():
    start, matrix, offset = quadratics(LAYOUTS[1])
    optimizer = Scheduled(AdamW(), "cosine", horizon=6)
    given = dict(optimizer.named_parameters())

    def episode(log_lr: Tensor) -> Tensor:
        params, state = start, optimizer.init(start)
        for _ in range(6):
            grads = params.like((matrix @ params.flat[..., None])[..., 0] - offset)
            values = {**given, "optimizer.log_lr": log_lr}
            params, state = functional_call(optimizer, values, (params, grads, None, state))
        return params.flat

    rates = torch.tensor([0.1, 0.03])
    for rate, flat in zip(rates, vmap(episode)(rates.log()), strict=True):
        expected = run(optimizer.with_hyperparameters(lr=rate), start, matrix, offset, steps=6)
        torch.testing.assert_close(flat, expected, rtol=1e-12, atol=1e-14)


def test_any_optimizer_can_be_scheduled():
    torch.manual_seed(0)
    start, matrix, offset = quadratics(LAYOUTS[1])
    lstm = LSTM(hidden_size=3)
    path = [run(Scheduled(lstm, "linear", horizon=4, warm_up=0), start, matrix, offset, steps=k) for k in (0, 1, 2)]
    plain = run(lstm, start, matrix, offset, steps=1)
    torch.testing.assert_close(path[1], plain)
    assert not torch.equal(path[2], path[1]) and not hasattr(Scheduled(lstm, horizon=1), "hyperparameters")


def test_a_schedule_from_outside():
    register_schedule("root", lambda progress: (1 - progress).sqrt(), warm_up=0)
    f = Scheduled(SGD(), "root", horizon=4).factor(torch.arange(5.0))
    assert f.tolist() == pytest.approx([1, 0.75**0.5, 0.5**0.5, 0.5, 0])
    register_schedule("root", lambda progress: 1 - progress, warm_up=0)  # from the same module: a new version
    del SCHEDULES["root"]


def test_is_rebuilt_from_its_recipe():
    optimizer = Scheduled(AdamW(lr=0.3), ("linear", "cosine"), horizon=9, final=0.1)
    again = recipes.construct(optimizer.recipe)
    assert again.recipe == optimizer.recipe and type(again.optimizer) is AdamW
    assert again.schedules == ("linear", "cosine") and again.final == 0.1
    assert again.optimizer.hyperparameters["lr"].item() == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scheduled(SGD(), "cosin", horizon=3), "optimizer.schedule=cosin: .*did you mean cosine"),
        (lambda: Scheduled(SGD(), (), horizon=3), "optimizer.schedule=: no schedule"),
        (lambda: Scheduled(SGD(), horizon=0), r"optimizer.horizon=0: must be >= 1"),
        (lambda: Scheduled(SGD(), horizon=3, warm_up=1.0), r"optimizer.warm_up=1.0: must be in \[0, 1\)"),
        (lambda: Scheduled(SGD(), horizon=3, final=-1.0), r"optimizer.final=-1.0: must be in \[0, 1\]"),
        (lambda: Scheduled(SGD(), horizon=3).with_hyperparameters(schedule=1.0), "optimizer.schedule: unknown"),
        (
            lambda: Scheduled(SGD(), ("linear", "cosine"), horizon=3).with_hyperparameters(schedule=2.0),
            "optimizer.schedule=2.0: must be numbers of linear, cosine",
        ),
        (lambda: register_schedule("cosine", torch.ones_like), "schedule=cosine: is taken"),
        (lambda: register_schedule("best", torch.ones_like), "schedule=best: is taken"),
        (lambda: register_schedule("a+b", torch.ones_like), r"schedule=a\+b: .*has a \+"),
        (lambda: register_schedule("late", torch.ones_like, warm_up=2), "schedule.warm_up=2: must be in"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_horizons_of_all_sizes_start_and_end_well():
    for horizon, name in itertools.product(range(1, 60), ("cosine", "linear")):
        f = Scheduled(SGD(), name, horizon=horizon).factor(torch.arange(float(horizon + 1)))
        assert f[0] > 0 and f.max() == 1 and f[-1] == pytest.approx(0, abs=1e-15) and (f[:-1] > 0).all()
