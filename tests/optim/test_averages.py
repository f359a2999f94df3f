"""The drop-in's averages: their closed form, torch's AveragedModel and update_bn; reading out leaves no trace."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.optim.swa_utils import AveragedModel, update_bn

from ph_l2o.optim import PortHamiltonian
from ph_l2o.optimizers import Averaged, PortHamiltonianKronecker
from ph_l2o.optimizers import PortHamiltonian as Learned
from ph_l2o.optimizers.averaged import POWER
from ph_l2o.params import Params
from tests.optim.conftest import account, batch, flat, needs_compiler, train
from tests.optim.test_state import HOWS, alone, steps  # noqa: F401

FORMS = {
    "plain": lambda p, **o: PortHamiltonian(p, average=True, **o),
    "compiled": lambda p, **o: PortHamiltonian(p, average=True, compile=True, **o),
    "kronecker": lambda p, **o: PortHamiltonian(p, average=True, pretrained="kronecker", **o),
}
SHAPES = ((6, 5), (5,), (3, 2, 2), ())


@pytest.fixture(params=[pytest.param(x, marks=needs_compiler if x == "compiled" else ()) for x in FORMS])
def make(request):
    return FORMS[request.param]


def tensors(dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in SHAPES]


def closed_form(iterates):
    """Σ w_k θ_k / Σ w_k with w_k = Γ(k + η) / Γ(k), in float64."""
    weights = [math.exp(math.lgamma(k + POWER) - math.lgamma(k)) for k in range(1, len(iterates) + 1)]
    return sum(w * x.double() for w, x in zip(weights, iterates, strict=True)) / math.fsum(weights)


def averages(optimizer, params):
    with optimizer.averaged():
        return [p.detach().clone() for p in params]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_average_has_its_closed_form_and_changes_no_step(make, dtype):
    """A tensor that comes later has an average of its own age, and one that rests one of all iterates since it came."""
    params, plain = tensors(dtype), tensors(dtype)
    params[0] = params[0].detach().mT.clone().mT.requires_grad_()  # columns first in memory
    optimizer = make(params[:3])
    twin = make(plain[:3])
    twin._average = False
    found = [[] for _ in params]
    for k in range(30):
        if k == 8:
            for other, of in ((optimizer, params), (twin, plain)):
                other.add_param_group({"params": [of[3]], "lr": 0.5})
        for other, of in ((optimizer, params), (twin, plain)):
            of[1].grad = None
            taking_part = of[: 3 if k < 8 else None]
            steps([taking_part[0], *taking_part[2:]] if 12 <= k < 20 else taking_part, other, k, 1)
        for i, p in enumerate(params):
            if k >= 8 or i < 3:
                found[i].append(p.detach().clone())
    assert all(map(torch.equal, params, plain)) and "average" not in twin.state[plain[0]]
    assert all(optimizer.state[p]["average"].dtype == (dtype if dtype.itemsize == 8 else torch.float32) for p in params)
    rtol = {torch.bfloat16: 4e-3, torch.float32: 1e-5, torch.float64: 1e-11}[dtype]
    for p, average, iterates in zip(params, averages(optimizer, params), found, strict=True):
        expected = closed_form(iterates)
        torch.testing.assert_close(average.double(), expected, rtol=rtol, atol=rtol * expected.abs().max().item())
        kept = optimizer.state[p]["average"]
        torch.testing.assert_close(kept.double(), expected, rtol=1e-5, atol=1e-6)  # finer than bfloat16
        assert not torch.allclose(p.double(), expected, rtol=1e-2)


def test_while_it_rests_a_tensor_is_what_its_average_goes_to(make):
    params = tensors()
    optimizer = make(params)
    steps(params, optimizer, 0, 5)
    params[1].grad, resting = None, params[1].detach().clone()
    before = averages(optimizer, params)[1]
    kept = optimizer.state[params[1]]["average"].clone()
    steps([params[0], *params[2:]], optimizer, 5, 1)
    assert torch.equal(optimizer.state[params[1]]["average"], kept), "untouched while it rests"
    expected = before + (POWER + 1) / (POWER + 6) * (resting - before)
    torch.testing.assert_close(averages(optimizer, params)[1], expected)
    steps([params[0], *params[2:]], optimizer, 6, 2000)
    torch.testing.assert_close(averages(optimizer, params)[1], resting, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("learned", [Learned, PortHamiltonianKronecker], indirect=True)
@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=needs_compiler)])
@torch.no_grad()
def test_equal_to_the_pure_form(learned, compile):
    params = tensors(torch.float64)
    optimizer = PortHamiltonian(params, pretrained=learned, compile=compile, average=True)
    pure = Averaged(copy.deepcopy(learned).double())
    theirs = Params.from_tensors({str(i): p[None].clone() for i, p in enumerate(params)})
    state = pure.init(theirs)
    for k in range(30):
        torch.manual_seed(k)
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step(loss=5.0 - 0.1 * k)
        grads = Params.from_tensors({str(i): p.grad[None] for i, p in enumerate(params)})
        theirs, state = pure.update(theirs, grads, torch.tensor([5.0 - 0.1 * k], dtype=torch.float64), state)
    expected = pure.readout(theirs, state)
    for i, average in enumerate(averages(optimizer, params)):
        torch.testing.assert_close(average, expected[str(i)][0], rtol=1e-7, atol=1e-9)


@pytest.mark.usefixtures("alone")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("how", HOWS)
def test_a_saved_state_continues_bit_for_bit(make, model, how, dtype, tmp_path):
    model, models = model.to(dtype), []
    for other in (model, copy.deepcopy(model)):
        made = ZeroRedundancyOptimizer(other.parameters(), make) if how == "zero" else make(other.parameters())
        models.append((other, made))
    steps([*model.parameters()], models[0][1], 0, 3)
    model[2].bias.grad = None
    steps([*model.parameters()][:3], models[0][1], 3, 2)
    HOWS[how](*models[0], *models[1], tmp_path)
    for other, optimizer in models:
        steps([*other.parameters()][:3], optimizer, 5, 2)
        steps([*other.parameters()], optimizer, 7, 2)
    saved = [getattr(optimizer, "optim", optimizer).averaged_state_dict(other) for other, optimizer in models]
    assert all(torch.equal(x, y) for x, y in zip(*(s.values() for s in saved), strict=True))
    assert not torch.equal(saved[0]["0.weight"], model[0].weight) and torch.equal(flat(model), flat(models[1][0]))


def test_copies_and_models_of_another_type_go_on(make, model):
    optimizer = make(model.parameters())
    train(model, optimizer, 4)
    model, optimizer = copy.deepcopy((model, optimizer))
    train(model, optimizer, 2, first=4)
    model.double()
    torch.set_default_dtype(torch.float64)
    try:
        train(model, optimizer, 2, first=6)
    finally:
        torch.set_default_dtype(torch.float32)
    state = optimizer.state[model[0].weight]
    assert state["averaged"] == 8 and state["average"].dtype == torch.float64
    assert optimizer.averaged_state_dict(model)["0.weight"].dtype == torch.float64


def test_a_state_without_averages_begins_them_and_one_with_is_not_dropped(make, model):
    optimizer, plain = make(model.parameters()), make(model.parameters())
    plain._average = False
    train(model, optimizer, 3)
    with pytest.raises(ValueError, match=r"the loaded state has averages: make the optimizer with average=True"):
        plain.load_state_dict(optimizer.state_dict())
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["average"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"the loaded state has average of shape \(3,\) for parameter 0"):
        optimizer.load_state_dict(state)
    without = {key: {k: x for k, x in memory.items() if "average" not in k} for key, memory in state["state"].items()}
    optimizer.load_state_dict({**state, "state": without})
    first = optimizer.averaged_state_dict(model)
    assert all(map(torch.equal, first.values(), model.state_dict().values()))
    train(model, optimizer, 1, first=3)
    assert optimizer.state[model[0].weight]["averaged"] == 1
    assert torch.equal(averages(optimizer, [model[0].weight])[0], model[0].weight)


def test_a_skipped_step_is_none(make, model):
    optimizer = make(model.parameters())
    train(model, optimizer, 3)
    before = averages(optimizer, model.parameters())
    for p in model.parameters():
        p.grad = torch.full_like(p, torch.nan)
    optimizer.step()
    assert optimizer.skipped == 1 and optimizer.state[model[0].weight]["averaged"] == 3
    assert all(map(torch.equal, before, averages(optimizer, model.parameters())))


def test_the_average_is_torchs(model):
    optimizer = PortHamiltonian(model.parameters(), average=True)

    def average(averaged, current, count):
        for mean, x in zip(averaged, current, strict=True):
            mean.lerp_(x, (POWER + 1) / (POWER + 1 + count.item()))

    theirs = AveragedModel(model, multi_avg_fn=average)
    for k in range(20):
        train(model, optimizer, 1, first=k)
        theirs.update_parameters(model)
    for name, x in optimizer.averaged_state_dict(model).items():
        torch.testing.assert_close(x, theirs.module.state_dict()[name], rtol=1e-5, atol=1e-7)


class Refused(Exception):
    pass


@pytest.mark.parametrize("fails", [False, True])
def test_afterwards_the_parameters_are_what_they_were(make, model, fails):
    optimizer = make(model.parameters())
    model[0].bias.requires_grad_(False)
    train(model, optimizer, 6)
    twin, other = copy.deepcopy((model, optimizer))
    before, gradient = flat(model), model[0].weight.grad.clone()
    try:
        with optimizer.averaged(model):
            assert torch.equal(model[0].bias, twin[0].bias) and not torch.equal(model[0].weight, twin[0].weight)
            model.eval()
            with torch.no_grad():
                model[0].weight.mul_(3.0)
            if fails:
                raise Refused
    except Refused:
        assert fails
    assert torch.equal(flat(model), before) and torch.equal(model[0].weight.grad, gradient) and not model.training
    train(model, optimizer, 3, first=6)
    train(twin, other, 3, first=6)
    assert torch.equal(flat(model), flat(twin)) and account(optimizer) == account(other)
    assert optimizer.averaged_state_dict(model).keys() == model.state_dict().keys()


def test_inside_there_are_no_steps(make, model):
    optimizer = make(model.parameters())
    train(model, optimizer, 2)
    state, before, called = copy.deepcopy(optimizer.state_dict()), flat(model), []
    match = "PortHamiltonian: its averages are in the parameters now; leave averaged"
    with optimizer.averaged():
        with pytest.raises(RuntimeError, match=match):
            optimizer.step(lambda: called.append(1))
        with pytest.raises(RuntimeError, match=match):
            optimizer.load_state_dict(state)
        with pytest.raises(RuntimeError, match=match), optimizer.averaged():
            pass
        with pytest.raises(RuntimeError, match=match):
            optimizer.averaged_state_dict(model)
        assert not torch.equal(flat(model), before) and not called
    assert torch.equal(flat(model), before)
    train(model, optimizer, 1)


def with_batch_norm():
    torch.manual_seed(0)
    layers = nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=0.3), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 1)
    model = nn.Sequential(*layers)
    model.register_buffer("of_my_own", torch.ones(2))
    return model


def test_statistics_are_those_of_the_averages(make):
    model = with_batch_norm()
    optimizer = make(model.parameters())
    train(model, optimizer, 10)
    model[1].eval()  # modes stay as they are, each of them
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    batches = [batch(k) for k in range(5)]
    draws = torch.get_rng_state()
    found = optimizer.averaged_state_dict(model, batches)
    assert torch.equal(torch.get_rng_state(), draws) and [m.training for m in model.modules()] == modes
    assert all(map(torch.equal, model.state_dict().values(), before.values())) and model[1].momentum == 0.3
    expected = with_batch_norm()
    expected.load_state_dict({k: x if "running" in k or "num" in k else found[k] for k, x in before.items()})
    update_bn([x for x, _ in batches], expected)
    assert found["1.num_batches_tracked"] == 5 and torch.equal(found["of_my_own"], torch.ones(2))
    for name, x in expected.state_dict().items():
        torch.testing.assert_close(found[name], x, msg=name)
    assert not torch.allclose(found["1.running_var"], before["1.running_var"])
    with optimizer.averaged(model, (x for x, _ in batches)):
        model.eval()
        torch.testing.assert_close(model(batches[0][0]), expected.eval()(batches[0][0]))
        model.train()(100 * batches[0][0])  # changes the statistics
    assert all(map(torch.equal, model.state_dict().values(), before.values()))


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        (None, ValueError, r"PortHamiltonian.averaged\(model\): 1 is a BatchNorm, .* give batches= too"),
        ([], ValueError, r"averaged\(batches=…\): is empty"),
        ([torch.ones(2, 4), torch.ones(2, 3)], RuntimeError, "shapes cannot be multiplied"),
    ],
)
def test_statistics_that_cannot_be_made(batches, error, message):
    model = with_batch_norm()
    optimizer = FORMS["plain"](model.parameters())
    train(model, optimizer, 3)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        optimizer.averaged_state_dict(model, batches)
    assert all(map(torch.equal, model.state_dict().values(), before.values()))
    assert model.training and model[1].momentum == 0.3
    train(model, optimizer, 1)


def test_batch_norm_without_running_statistics_needs_none():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 1))
    optimizer = FORMS["plain"](model.parameters())
    train(model, optimizer, 3)
    assert not torch.equal(optimizer.averaged_state_dict(model)["0.weight"], model[0].weight)


def test_what_asks_for_nothing_or_for_what_is_not_there(model):
    with pytest.raises(ValueError, match=r"average=0.999: must be True or False"):
        PortHamiltonian(model.parameters(), average=0.999)
    with pytest.raises(RuntimeError, match=r"there are no averages; make the optimizer with average=True"):
        PortHamiltonian(model.parameters()).averaged()
    optimizer = PortHamiltonian(model.parameters(), average=True)
    with pytest.raises(ValueError, match=r"averaged\(batches=…\): says nothing without the model"):
        optimizer.averaged(batches=[1]).__enter__()
    with pytest.raises(ValueError, match=r"averaged\(model\): has none of the optimizer's parameters"):
        optimizer.averaged_state_dict(copy.deepcopy(model))
    before = optimizer.averaged_state_dict(model)  # before the first step
    assert all(map(torch.equal, before.values(), model.state_dict().values()))


def test_with_a_known_length_and_schedules_it_goes_on(model):
    optimizer = PortHamiltonian(model.parameters(), average=True, total_steps=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(model, optimizer, 4)
        end = flat(model)
        train(model, optimizer, 2000, first=4)
    found = torch.cat([x.flatten() for x in optimizer.averaged_state_dict(model).values()])
    torch.testing.assert_close(found, end, rtol=1e-5, atol=1e-6)
