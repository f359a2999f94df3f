"""What PyTorch's own tests ask of every optimizer (`test/test_optim.py`, `common_optimizers.py`), of all drop-ins.

What differs by design, with its reason, besides the options in `test_surroundings.py`:

- Complex parameters and sparse gradients are refused: the energy is of real, dense coordinates.
- `step` in the state is a number where AdamW has a tensor: nothing is captured in graphs.
- Steps are not compared with those of a loop over tensors (`foreach`, `fused`): there is one form, and `compile=True`,
  which `test_same_steps.py` compares.
- `lr` is a factor of what was learned, so that AdamW's values are not used here.
"""

import copy
import io

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from tests.optim.conftest import FORMS

LOSSES = [name for name in FORMS if name not in ("LSTM", "Muon")]  # trained, so that they go downhill


def problem(layout="contiguous", seed=0):
    """A weight and a bias, and a closure's maker, as torch's tests have them."""
    torch.manual_seed(seed)
    if layout == "contiguous":
        weight, bias = torch.randn(10, 5), torch.randn(10)
    else:
        weight, bias = torch.randn(10, 5, 2)[..., 0], torch.randn(10, 2)[..., 0]
    weight, bias, x = weight.requires_grad_(), bias.requires_grad_(), torch.randn(5)

    def closure_of(optimizer):
        def closure():
            optimizer.zero_grad()
            loss = (weight.mv(x) + bias).square().sum()
            loss.backward()
            return loss

        return closure

    return weight, bias, closure_of


def twins(make, steps=3, names=False):
    """Two optimizers in equal states over equal parameters, and their closures."""
    found = []
    for _ in range(2):
        weight, bias, closure_of = problem()
        optimizer = make([("weight", weight), ("bias", bias)] if names else [weight, bias])
        found.append((optimizer, closure_of(optimizer), (weight, bias)))
    for _ in range(steps):
        found[0][0].step(found[0][1])
    return found


@pytest.mark.parametrize("form", LOSSES)
@pytest.mark.parametrize("groups", ["one", "lr", "weight_decay", "tensor lr", "tensor lr (1,)"])
@pytest.mark.parametrize("layout", ["contiguous", "strided"])
def test_goes_downhill(form, layout, groups):
    weight, bias, closure_of = problem(layout)
    options = {"weight_decay": {"weight_decay": 0.01}, "lr": {"lr": 0.5}}.get(groups, {})
    lr = {"tensor lr": torch.tensor(0.5), "tensor lr (1,)": torch.tensor([0.5])}.get(groups)
    optimizer = FORMS[form](
        [{"params": [weight]}, {"params": [bias], **options}],
        **({} if lr is None else {"lr": lr if form != "AdamW" else 0.02 * lr}),
    )
    closure = closure_of(optimizer)
    start = closure().item()
    for _ in range(20):
        optimizer.step(closure)
    assert closure().item() < start
    assert lr is None or torch.is_tensor(optimizer.param_groups[0]["lr"])


SCHEDULERS = {
    "step": [lambda o: lr_scheduler.StepLR(o, 10, 0.9)],
    "linear": [lambda o: lr_scheduler.LinearLR(o, 0.4, total_iters=4)],
    "two": [lambda o: lr_scheduler.StepLR(o, 10, 0.9), lambda o: lr_scheduler.ExponentialLR(o, 0.99)],
    "plateau": [lambda o: lr_scheduler.ReduceLROnPlateau(o)],
}


@pytest.mark.parametrize("form", LOSSES)
@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("tensor", [False, True])
def test_goes_downhill_with_schedulers(form, kind, tensor):
    weight, bias, closure_of = problem()
    lr = torch.tensor(0.01 if form == "AdamW" else 1.0)
    optimizer = FORMS[form]([{"params": [weight]}, {"params": [bias]}], lr=lr if tensor else lr.item())
    closure, schedulers = closure_of(optimizer), [make(optimizer) for make in SCHEDULERS[kind]]
    start = closure().item()
    for _ in range(15):
        loss = optimizer.step(closure)
        for scheduler in schedulers:
            scheduler.step(*([loss.item()] if kind == "plateau" else []))
    assert closure().item() < start


def test_no_gradient_and_zero_gradients(make):
    """Nothing happens without gradients, and with gradients of 0 from the start."""
    params = [torch.randn(2, 3).requires_grad_(), torch.randn(2).requires_grad_()]
    before = [p.detach().clone() for p in params]
    optimizer = make(params)
    assert optimizer.step() is None and not optimizer.state
    for p in params:
        p.grad = torch.zeros_like(p)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    optimizer.step(lambda: torch.tensor(1.0))
    is_lstm = "cell" in optimizer.state[params[0]]  # whose random weights say what they say
    assert is_lstm or all(map(torch.equal, params, before))


def test_zero_grad_and_repr(make):
    weight, bias, closure_of = problem()
    optimizer = make([weight, bias])
    assert "lr:" in repr(optimizer) and type(optimizer).__name__ in repr(optimizer)
    closure_of(optimizer)()
    optimizer.zero_grad(set_to_none=False)
    assert weight.grad is not None and not weight.grad.any()
    optimizer.zero_grad()
    assert weight.grad is None


def test_state_dict_is_deterministic(make):
    """Loading a copy leads to the same steps and the same state, and leaves the copy as it is."""
    (optimizer, closure, params), (other, other_closure, others) = twins(make)
    with torch.no_grad():
        for p, q in zip(params, others, strict=True):
            q.copy_(p)
    state = copy.deepcopy(optimizer.state_dict())
    given = copy.deepcopy(state)
    other.load_state_dict(given)
    torch.testing.assert_close(given, state, rtol=0, atol=0)
    for _ in range(3):
        optimizer.step(closure)
        other.step(other_closure)
    assert all(map(torch.equal, params, others))
    torch.testing.assert_close(optimizer.state_dict(), other.state_dict(), rtol=0, atol=0)
    other.param_groups.extend(other.param_groups)  # the same parameters once more are the same indices
    assert optimizer.state_dict()["param_groups"][-1] == other.state_dict()["param_groups"][-1]


def test_state_has_something_and_loads_with_weights_only(make):
    (optimizer, _, params), (other, _, _) = twins(make)
    assert all(len(optimizer.state[p]) > 0 for p in params)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(optimizer.state_dict(), other.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("loaded", [True, False])
def test_names_need_not_be_on_both_sides(make, saved, loaded):
    first, second = twins(make, names=saved)[0], twins(make, 0, names=loaded)[0]
    second[0].load_state_dict(first[0].state_dict())
    names = ["weight", "bias"] if saved or loaded else None
    assert second[0].param_groups[0].get("param_names") == names
    second[0].step(second[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_state_goes_to_other_types(make, dtype):
    """It stays in its own precision for low ones, and a step follows."""
    optimizer, _, params = twins(make)[0]
    others = [p.detach().to(dtype).requires_grad_() for p in params]
    other = make(others)
    other.load_state_dict(optimizer.state_dict())
    for q in others:
        q.grad = torch.ones_like(q)
        if not isinstance(other, torch.optim.AdamW):
            kept = [x for x in other.state[q].values() if torch.is_tensor(x)]
            assert all(x.dtype in (torch.float32, torch.float64) for x in kept)
    other.step(lambda: 1.0)
    assert all(q.isfinite().all() and q.dtype == dtype for q in others)


def test_copies_have_all_public_attributes(make):
    optimizer = twins(make)[0][0]
    public = {name for name in vars(optimizer) if not name.startswith("_")}
    assert {name for name in vars(copy.deepcopy(optimizer)) if not name.startswith("_")} == public


def test_mixed_types_and_devices_on_cpu(make):
    params = [nn.Parameter(torch.randn(3, 2).to(dtype)) for dtype in (torch.float32, torch.float64, torch.bfloat16)]
    optimizer = make(params)
    for k in range(3):
        for p in params:
            p.grad = torch.full_like(p, 0.1 * (k + 1))
        before = [p.detach().clone() for p in params]
        optimizer.step()
        assert all(p.isfinite().all() and not torch.equal(p, q) for p, q in zip(params, before, strict=True))


def test_hooks(make):
    """Of steps, of what is saved and of what is loaded: before and after, in order, and what they return counts."""
    (optimizer, closure, _), (other, _, _) = twins(make)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("first"))
    optimizer.register_step_pre_hook(lambda o, args, kwargs: ((o, closure), {}))
    optimizer.register_step_post_hook(lambda *_: seen.append("last"))
    assert optimizer.step() is not None and seen == ["first", "last"]
    optimizer.register_state_dict_pre_hook(lambda o: o.param_groups[0].update(test=True))
    optimizer.register_state_dict_post_hook(lambda o, state: {**state, "ours": True})
    optimizer.register_state_dict_post_hook(lambda o, state: seen.append(state["ours"]), prepend=False)
    state = optimizer.state_dict()
    assert state["param_groups"][0]["test"] and state["ours"] and seen[-1] is True

    def change(o, given):
        given["param_groups"] = [{**group, "lr": 0.002} for group in given["param_groups"]]
        return given

    other.register_load_state_dict_pre_hook(change)
    other.register_load_state_dict_post_hook(lambda o: seen.append(len(o.state)))
    other.load_state_dict(state)
    assert other.param_groups[0]["lr"] == 0.002 and seen[-1] == 2
    torch.testing.assert_close(other.state_dict()["state"], state["state"], rtol=0, atol=0)


def test_bad_input(make):
    p, q = nn.Parameter(torch.randn(1, 1)), nn.Parameter(torch.randn(1, 1))
    for params, error, text in (
        (p, TypeError, "iterable of Tensors or dicts"),
        ([{"params": p}, {"params": p}], ValueError, "some parameters appear in more than one parameter group"),
        ([("weight", p), q], ValueError, "all optimizer params should be with/without names"),
        ([{"params": [p]}, {"params": [("weight", q)]}], ValueError, "with/without names"),
        ([1.0], TypeError, "can only optimize Tensors"),
        ({p, q}, TypeError, "ordered collections")
        if False
        else ([{"params": {p, q}}], TypeError, "ordered collections"),
    ):
        with pytest.raises(error, match=text):
            make(params)
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = make([p, p])
    p.grad = torch.ones_like(p)
    before = p.detach().clone()
    optimizer.step()
    assert p.isfinite().all() and not torch.equal(p, before)
    with pytest.raises(ValueError, match=r"lr of shape \(2,\)|Tensor lr must be 1-element"):
        make([q], lr=torch.tensor([0.001, 0.001]))
    with pytest.raises(TypeError, match="must be a dict"):
        optimizer.add_param_group([q])
