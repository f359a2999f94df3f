"""What `torch.optim` promises, side by side with AdamW."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from ph_l2o.optim import PortHamiltonian, WeightsError, from_learned
from ph_l2o.optimizers import HNN, LSTM, CoordinatewiseMLP
from ph_l2o.optimizers import Adam as LearnedAdam
from tests.optim.conftest import account, flat, loss_of, needs_compiler, train


def ours(learned, params, **options):
    return PortHamiltonian(params, pretrained=learned, **options)


@pytest.fixture(
    params=["AdamW", "PortHamiltonian", pytest.param("compiled", marks=needs_compiler), "kronecker", "LSTM"]
)
def make(request, learned):
    torch.manual_seed(1)
    return {
        "AdamW": lambda p, **o: torch.optim.AdamW(p, **({"lr": 0.01} | o)),
        "PortHamiltonian": lambda p, **o: ours(learned, p, **o),
        "compiled": lambda p, **o: ours(learned, p, compile=True, **o),
        "kronecker": lambda p, **o: ours("kronecker", p, **o),
        "LSTM": from_learned(LSTM(hidden_size=4)),
    }[request.param]


def again(model):
    return copy.deepcopy(model)


@pytest.mark.parametrize("with_loss", [True, False])
def test_trains_in_a_plain_loop(model, with_loss):
    """The shipped weights, with no settings, against AdamW with its own."""
    reached = []
    for make in (torch.optim.AdamW, PortHamiltonian):
        other = again(model)
        optimizer = make(other.parameters())
        start = loss_of(other).item()
        for _ in range(100):
            optimizer.zero_grad()
            loss = loss_of(other)
            loss.backward()
            optimizer.step(loss=loss) if with_loss and make is PortHamiltonian else optimizer.step()
        reached.append(loss_of(other).item())
    assert reached[0] < start and reached[1] < 0.7 * start


@pytest.mark.parametrize("how", ["closure", "loss", "nothing"])
def test_step_returns_the_loss(make, model, how):
    if how == "loss" and make([next(again(model).parameters())]).__class__ is torch.optim.AdamW:
        pytest.skip("AdamW takes no loss")
    optimizer, calls = make(model.parameters()), []

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        calls.append(loss_of(model))
        calls[-1].backward()
        return calls[-1]

    if how == "closure":
        with torch.no_grad():
            assert optimizer.step(closure) is calls[0] and len(calls) == 1
    elif how == "loss":
        loss = closure()
        assert optimizer.step(loss=loss) is loss
    else:
        closure()
        assert optimizer.step() is None


def test_state_dict_continues_bit_for_bit(make, model):
    optimizer = make(model.parameters())
    train(model, optimizer, 4, with_loss=False)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = again(model)
    other.load_state_dict(saved["model"])
    resumed = make(other.parameters())
    resumed.load_state_dict(saved["optimizer"])
    assert set(saved["optimizer"]) == {"state", "param_groups"}
    train(model, optimizer, 4, 4, with_loss=False)
    train(other, resumed, 4, 4, with_loss=False)
    assert torch.equal(flat(model), flat(other))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_continue_bit_for_bit(make, model, copied):
    optimizer = make(model.parameters())
    train(model, optimizer, 3, with_loss=False)
    other, twin = copied((model, optimizer))
    assert all(p is q for p, q in zip(other.parameters(), twin.param_groups[0]["params"], strict=True))
    train(model, optimizer, 3, 3, with_loss=False)
    train(other, twin, 3, 3, with_loss=False)
    assert torch.equal(flat(model), flat(other))


def test_a_state_of_another_model_is_refused(learned, model):
    optimizer = ours(learned, model.named_parameters())
    train(model, optimizer, 2)
    state = optimizer.state_dict()
    wider = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 1))
    target = ours(learned, wider.named_parameters())
    with pytest.raises(ValueError, match=r"shape \(8, 4\) for parameter 0.weight, which needs \(9, 4\)"):
        target.load_state_dict(state)
    with pytest.raises(ValueError, match="doesn't match the size"):
        ours(learned, list(again(model).named_parameters())[:1]).load_state_dict(state)
    swapped = list(again(model).named_parameters())[::-1]
    with pytest.raises(ValueError, match=r"another order: 0.weight, 0.bias"):
        ours(learned, swapped).load_state_dict(state)
    adam = torch.optim.AdamW(model.parameters())
    train(model, adam, 1, with_loss=False)
    with pytest.raises(ValueError, match="another optimizer than PortHamiltonian"):
        ours(learned, model.parameters()).load_state_dict(adam.state_dict())
    assert not target.state
    with pytest.raises(ValueError, match="another optimizer than Learned: it has no hidden, cell"):
        from_learned(LSTM())(model.parameters()).load_state_dict(adam.state_dict())


@pytest.mark.parametrize("kinds", [("default", "kronecker"), ("kronecker", "default")])
def test_a_state_of_the_other_kind_of_weights_is_refused(model, kinds):
    optimizer, other = (ours(kind, model.parameters()) for kind in kinds)
    train(model, optimizer, 2)
    with pytest.raises(ValueError, match=f"parameter 0 is of weights of the other kind: .*pretrained={kinds[0]}"):
        other.load_state_dict(optimizer.state_dict())
    assert not other.state


def test_the_keys_of_a_saved_state_stay(model):
    """What is saved today has to be loaded by later versions."""
    buffers = {"fast", "slow", "second", "momentum", "account"}
    buffers |= {"step", "second_sum", "momentum_square", "theta_square", "start_square", "gradient_factor"}
    for kind, more in (("default", set()), ("kronecker", {"basis", "gram", "gram_unit"})):
        optimizer = ours(kind, model.parameters())
        train(model, optimizer, 1)
        state = optimizer.state_dict()["state"]
        assert set(state) == {0, 1, 2, 3} and set(state[0]) == buffers | more
        assert all(memory["account"] is state[0]["account"] for memory in state.values())
        assert list(account(optimizer)) == [
            "step", "gradient_unit", "second_mean", "reference", "loss_start", "loss_fast", "loss_slow", "loss_unit",
            "uses_loss", "energy", "kinetic", "stiffness", "rest_radius", "trust", "share", "skipped",
        ]  # fmt: skip


def test_half_precision_continues_bit_for_bit(learned, model):
    model = model.to(torch.bfloat16)
    optimizer = ours(learned, model.parameters())
    for other, twin in [(model, optimizer)] * 2:
        for k in range(3):
            for p in other.parameters():
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(k)).to(p.dtype)
            twin.step(loss=1.0)
    assert optimizer.state[model[0].weight]["momentum"].dtype == torch.float32
    other = again(model)
    twin = ours(learned, other.parameters())
    twin.load_state_dict(optimizer.state_dict())
    for m, o in ((model, optimizer), (other, twin)):
        for p in m.parameters():
            p.grad = torch.ones_like(p)
        o.step(loss=1.0)
    assert torch.equal(flat(model), flat(other))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types_and_shapes(make, dtype):
    shapes = [(), (1,), (0,), (3,), (2, 0, 4), (2, 1, 3, 1, 2)]
    params = [torch.randn(s).to(dtype).requires_grad_() for s in shapes]
    params.append(torch.randn(2, 3, 4, 4).to(dtype).to(memory_format=torch.channels_last).requires_grad_())
    params.append(torch.randn(4, 3).to(dtype).T.requires_grad_())
    optimizer = make(params)
    before = [p.detach().clone() for p in params]
    for _ in range(3):
        for p in params:
            p.grad = torch.ones_like(p, memory_format=torch.contiguous_format)
        optimizer.step()
    for p, old in zip(params, before, strict=True):
        assert p.dtype == dtype and p.stride() == old.stride() and p.isfinite().all()
        assert not p.numel() or not torch.equal(p, old)


def test_strides_do_not_matter(learned):
    torch.manual_seed(0)
    start, grad, found = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), []
    for layout in (torch.contiguous_format, torch.channels_last):
        p = start.clone(memory_format=layout).requires_grad_()
        optimizer = ours(learned, [p])
        for _ in range(3):
            p.grad = grad.clone(memory_format=layout)
            optimizer.step(loss=1.0)
        found.append(p.detach().contiguous())
    assert torch.equal(*found)


def test_parameters_without_gradient_take_no_part(make):
    used, unused, late = (torch.ones(3, requires_grad=True) for _ in range(3))
    optimizer = make([used, unused, late])
    for k in range(4):
        used.grad = torch.randn(3)
        late.grad = torch.randn(3) if k > 1 else None
        before = late.detach().clone()
        optimizer.step()
        assert torch.equal(before, late) == (k < 2)
    assert torch.equal(unused, torch.ones(3)) and not torch.equal(used, torch.ones(3))
    assert unused not in optimizer.state


def test_nothing_happens_without_any_gradient(make):
    p = torch.ones(3, requires_grad=True)
    optimizer = make([p])
    assert optimizer.step() is None
    assert torch.equal(p, torch.ones(3)) and not optimizer.state.get(p)


def test_momentum_of_a_resting_parameter_stays(learned):
    p, q = (torch.ones(3, requires_grad=True) for _ in range(2))
    optimizer = ours(learned, [p, q])
    p.grad, q.grad = torch.randn(3), torch.randn(3)
    for k in range(5):
        optimizer.step(loss=1.0)  # a constant loss: its unit stays
        if k == 1:
            q.grad, memory = None, copy.deepcopy(optimizer.state[q])
    for name in memory.keys() - {"account"}:
        torch.testing.assert_close(optimizer.state[q][name], memory[name])
    kinetic = sum(0.5 * optimizer.state[x]["momentum"].square().sum() for x in (p, q))
    assert optimizer.diagnostics()["kinetic"] == pytest.approx(kinetic.item(), rel=1e-5)


def test_groups_and_a_later_group(make):
    first, second, third = (torch.ones(4, requires_grad=True) for _ in range(3))
    optimizer = make([{"params": [first]}, {"params": [second], "lr": 0.0}])
    for _ in range(2):
        first.grad, second.grad = torch.ones(4), torch.ones(4)
        optimizer.step()
    assert torch.equal(second, torch.ones(4)) and not torch.equal(first, torch.ones(4))
    optimizer.add_param_group({"params": [third]})
    assert optimizer.param_groups[2]["lr"] == optimizer.defaults["lr"]
    third.grad = torch.ones(4)
    optimizer.step()
    assert not torch.equal(third, torch.ones(4))


def test_a_later_group_has_room(learned):
    first, second = torch.ones(4, requires_grad=True), torch.full((4,), 1e4, requires_grad=True)
    optimizer = ours(learned, [first])
    first.grad = torch.ones(4)
    optimizer.step()
    energy, radius = optimizer.diagnostics()["energy"], optimizer.radius()
    optimizer.add_param_group({"params": [second]})
    optimizer.step()  # it has no gradient yet
    assert optimizer.diagnostics()["energy"] <= energy
    second.grad = torch.ones(4)
    optimizer.step()
    found = optimizer.diagnostics()
    assert found["energy"] <= energy and found["spring"] == 0  # it is not pulled at
    assert optimizer.radius() > 500 * second.norm() > radius
    second.grad = torch.ones(4)
    optimizer.step()
    assert optimizer.diagnostics()["energy"] <= found["energy"]


def test_bad_parameters_and_options(make, learned):
    p = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="empty parameter list"):
        make([])
    with pytest.raises(TypeError, match="iterable"):
        make(p)
    with pytest.raises(ValueError, match="non-leaf"):
        make([2 * p])
    with pytest.raises(ValueError, match=r"more than one|some parameters appear"):
        make([{"params": [p]}, {"params": [p]}])
    with pytest.raises(ValueError, match=r"lr=-1|learning rate: -1"):
        make([p], lr=-1.0)
    optimizer = make([p])
    with pytest.raises(ValueError, match="appear in more than one"):
        optimizer.add_param_group({"params": [p]})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(ValueError, match=r"weight_decay=-0.5: must be >= 0"):
        ours(learned, [p], weight_decay=-0.5)
    with pytest.raises(TypeError, match="needs real parameters"):
        ours(learned, [torch.ones(2, dtype=torch.complex64, requires_grad=True)])
    with pytest.raises(WeightsError, match="holds LSTM"):
        ours(LSTM(), [p])


def test_bad_losses_and_gradients(learned):
    p = torch.ones(2, requires_grad=True)
    optimizer = ours(learned, [p])
    p.grad = torch.ones(2)
    with pytest.raises(ValueError, match=r"loss of shape \(2,\)"):
        optimizer.step(loss=torch.ones(2))
    with pytest.raises(TypeError, match="give one of them"):
        optimizer.step(lambda: 1.0, loss=1.0)
    p.grad = torch.ones(2).to_sparse()
    with pytest.raises(TypeError, match=r"gradient of parameter 0, .* must be dense"):
        optimizer.step()
    assert torch.equal(p, torch.ones(2))


@pytest.mark.parametrize("schedule", ["lambda", "cosine", "one_cycle", "plateau", "warm_up"])
def test_schedulers(make, model, schedule):
    optimizer = make(model.parameters())
    scheduler = {
        "lambda": lambda: lr_scheduler.LambdaLR(optimizer, lambda k: 0.5**k),
        "cosine": lambda: lr_scheduler.CosineAnnealingLR(optimizer, 3),
        "one_cycle": lambda: lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=6, cycle_momentum=False),
        "plateau": lambda: lr_scheduler.ReduceLROnPlateau(optimizer, patience=0),
        "warm_up": lambda: lr_scheduler.LambdaLR(optimizer, lambda k: min(1.0, k / 3)),
    }[schedule]()
    by_hand, constant = again(model), again(model)
    twin, other = make(by_hand.parameters()), make(constant.parameters())
    other.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"]
    if "initial_lr" in optimizer.param_groups[0]:  # a scheduler's mark, with which rates do not fall by themselves
        for one in (twin, other):
            one.param_groups[0]["initial_lr"] = 1.0
    for k in range(4):
        twin.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"]
        train(model, optimizer, 1, k, with_loss=False)
        train(by_hand, twin, 1, k, with_loss=False)
        train(constant, other, 1, k, with_loss=False)
        scheduler.step(*([float(k)] if schedule == "plateau" else []))
    assert torch.equal(flat(model), flat(by_hand)) and flat(model).isfinite().all()
    assert not torch.equal(flat(model), flat(constant))  # so that it fails where lr is ignored


def test_hooks_clipping_and_zero_grad(make, model):
    optimizer, seen = make(model.parameters()), []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    handle = optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    loss_of(model).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    optimizer.step()
    handle.remove()
    optimizer.step()
    assert seen == ["before", "after", "before"]
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_changes_are_seen_by_autograd(make):
    p = torch.ones(3, requires_grad=True)
    optimizer = make([p])
    loss = (p * p).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_grad_scaler(make, model):
    optimizer, scaler = make(model.parameters()), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for k in range(4):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, k)).backward()
        if k == 2:
            model[0].weight.grad[0, 0] = torch.inf
        before = flat(model)
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(flat(model), before) == (k == 2)
    assert scaler.get_scale() == 2.0**9


def test_what_is_not_finite_is_skipped_and_counted(learned, model):
    optimizer = ours(learned, model.parameters())
    train(model, optimizer, 3)
    before, state = flat(model), copy.deepcopy(optimizer.state_dict()["state"])
    loss_of(model).backward()
    optimizer.step(loss=torch.nan)
    model[0].bias.grad[1] = torch.nan
    optimizer.step(loss=1.0)
    assert optimizer.skipped == 2 and torch.equal(flat(model), before)
    skipped = list(account(optimizer)).index("skipped")
    for key, memory in optimizer.state_dict()["state"].items():
        for name, x in memory.items():
            if name == "account":
                assert [k for k, n in enumerate(x - state[key][name]) if n] == [skipped]
            else:
                assert torch.as_tensor(x).equal(torch.as_tensor(state[key][name])), name
    train(model, optimizer, 3)
    assert not torch.equal(flat(model), before) and flat(model).isfinite().all()
    assert optimizer.diagnostics()["uses_loss"]
    optimizer.step(loss=-1.0)
    assert not optimizer.diagnostics()["uses_loss"]
    train(model, optimizer, 1)
    assert not optimizer.diagnostics()["uses_loss"]


def test_diagnostics(learned, model):
    optimizer = ours(learned, model.named_parameters())
    found = optimizer.diagnostics()
    assert found["steps"] == 0 and found["tensors"] == {} and optimizer.radius() != optimizer.radius()
    train(model, optimizer, 3)
    found = optimizer.diagnostics()
    assert list(found["tensors"]) == [name for name, _ in model.named_parameters()]
    ports = found["tensors"]["0.weight"]
    assert set(ports) == {"lr", "damping", "mix", "rho", "lean"} and all(type(x) is float for x in ports.values())
    assert 0 < found["tank"] < found["energy"] and found["trust"] > 0 and found["steps"] == 3
    numbered = ours(learned, model.parameters())
    train(model, numbered, 1)
    assert list(numbered.diagnostics()["tensors"]) == ["0", "1", "2", "3"]


def test_under_torch_compile_of_the_model(model, learned):
    compiled = torch.compile(model, backend="aot_eager")
    losses = train(compiled, PortHamiltonian(compiled.parameters(), pretrained=learned), 5)
    twin = torch.manual_seed(0) and nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    assert losses == pytest.approx(train(twin, PortHamiltonian(twin.parameters(), pretrained=learned), 5), rel=1e-4)


@pytest.mark.parametrize(
    "family", [LSTM(hidden_size=4), HNN(), CoordinatewiseMLP(), LearnedAdam(lr=0.01)], ids=lambda x: type(x).__name__
)
def test_other_learned_optimizers(family, model):
    optimizer = from_learned(family)(model.named_parameters())
    train(model, optimizer, 3)
    assert flat(model).isfinite().all()
    loss_of(model).backward()
    if family.needs_loss:
        with pytest.raises(ValueError, match="needs the loss"):
            optimizer.step()


def test_learned_adam_is_adam(model):
    other = again(model)
    train(model, from_learned(LearnedAdam(lr=0.01))(model.parameters()), 5)
    train(other, torch.optim.Adam(other.parameters(), lr=0.01), 5, with_loss=False)
    torch.testing.assert_close(flat(model), flat(other), rtol=1e-4, atol=1e-5)
