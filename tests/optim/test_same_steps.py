"""The steps in place are those of the pure `update`, plain and compiled, and its guarantees hold in them."""

import copy
import warnings

import pytest
import torch

from ph_l2o.optim import PortHamiltonian
from ph_l2o.optimizers import PortHamiltonian as Learned
from ph_l2o.optimizers import PortHamiltonianKronecker
from ph_l2o.params import Params
from ph_l2o.port_hamiltonian import bases, fused, kernels, turned
from tests.optim.conftest import account, needs_compiler

SHAPES = ((30, 20), (30,), (3, 2, 2, 1, 2), (), (1,))
COMPILE = [False, pytest.param(True, marks=needs_compiler)]
CLASSES = pytest.mark.parametrize("learned", [Learned, PortHamiltonianKronecker], indirect=True)


@pytest.fixture(autouse=True)
def leading_sides(monkeypatch):
    """Not only in large matrices."""
    monkeypatch.setattr(bases, "WHOLE", 0)


def attack(steps: int, kind: str, dtype=torch.float64):
    """Start, and gradients, losses and their noise for each step."""
    torch.manual_seed(3)
    start = [torch.randn(s, dtype=dtype) for s in SHAPES]
    gradients, losses = [], []
    for k in range(steps):
        size = {"usual": 1.0, "tiny": 1e-9, "sizes": 10.0 ** ((5 * k) % 23 - 11)}[kind]
        gradients.append([size * torch.randn(s, dtype=dtype) for s in SHAPES])
        losses.append(torch.tensor(abs(3 - 0.05 * k), dtype=dtype))
    return start, gradients, losses


def pure(learned, start, dtype):
    params = Params.from_tensors({str(k): x[None].clone() for k, x in enumerate(start)})
    learned = copy.deepcopy(learned).to(dtype)
    return learned, params, learned.init(params)


@pytest.mark.parametrize(
    ("learned", "loss_kind"),
    [
        *((Learned, kind) for kind in ("given", "missing", "lost", "negative")),
        *((PortHamiltonianKronecker, kind) for kind in ("given", "missing")),
    ],
    indirect=["learned"],
)
@pytest.mark.parametrize("compile", COMPILE)
@pytest.mark.parametrize("kind", ["usual", "tiny", "sizes"])
@torch.no_grad()
def test_equal_to_the_pure_update(learned, compile, kind, loss_kind, monkeypatch):
    monkeypatch.setattr(kernels, "_LENGTH", 250)  # several parts of a tensor, several tensors in a batch
    start, gradients, losses = attack(40, kind)
    tensors = [x.clone().requires_grad_() for x in start]
    optimizer = PortHamiltonian(tensors, pretrained=learned, compile=compile)
    reference, params, state = pure(learned, start, torch.float64)
    for k, (grads, loss) in enumerate(zip(gradients, losses, strict=True)):
        if loss_kind == "missing" or (loss_kind == "lost" and k >= 20):
            loss = None
        elif loss_kind == "negative" and k == 20:
            loss = -loss
        if k == 5:
            grads[1][3] = torch.nan
        if k == 11:
            grads[3].fill_(torch.inf)
        if k == 15 and loss is not None:
            loss = loss * torch.nan
        for p, g in zip(tensors, grads, strict=True):
            p.grad = g.clone()
        before = [p.clone() for p in tensors]
        assert optimizer.step(loss=loss) is loss
        old = params
        packed = Params.from_tensors({str(i): g[None] for i, g in enumerate(grads)})
        params, state = reference.update(params, packed, None if loss is None else loss[None], state)
        for i, p in enumerate(tensors):
            moved, expected = p - before[i], params[str(i)][0] - old[str(i)][0]
            # Moves that are small beside θ are rounded with it.
            assert (moved - expected).abs().max() <= 1e-9 * expected.abs().max() + 1e-14 * p.abs().max()
            assert torch.equal(p.grad, grads[i]) or k in (5, 11)
    dynamics = getattr(state, "dynamics", state)
    for name, value in account(optimizer).items():
        assert value == pytest.approx(getattr(dynamics, name).item(), rel=1e-9, abs=1e-12), name
    assert optimizer.skipped == (3 if loss_kind in ("given", "negative", "lost") else 2)


@pytest.mark.parametrize("learned", [Learned, PortHamiltonianKronecker])
@pytest.mark.parametrize("compile", COMPILE)
@torch.no_grad()
def test_equal_to_the_pure_update_where_the_spring_acts(learned, compile):
    start, gradients, losses = attack(40, "usual")
    tensors = [x.clone().requires_grad_() for x in start]
    learned = learned(hidden_size=8, radius=2.0, init_lr=30.0)
    optimizer = PortHamiltonian(tensors, pretrained=learned, compile=compile)
    reference, params, state = pure(learned, start, torch.float64)
    pulls = 0
    for k, (grads, loss) in enumerate(zip(gradients, losses, strict=True)):
        for p, g in zip(tensors, grads, strict=True):
            p.grad = g.sub_(p, alpha=0.3 * (k < 20))  # away from 0
        optimizer.step(loss=loss)
        packed = Params.from_tensors({str(i): g[None] for i, g in enumerate(grads)})
        params, state = reference.update(params, packed, loss[None], state)
        for i, p in enumerate(tensors):
            torch.testing.assert_close(p, params[str(i)][0], rtol=1e-8, atol=1e-10)
        pulls += optimizer.diagnostics()["spring"] > 0
    assert 5 < pulls < 40


@torch.no_grad()
def test_tensors_that_are_turned_together_step_as_alone(monkeypatch):
    """Equal shapes, of which some rest now and then, so that their bases are renewed at other times."""
    found = []
    for length in (1, 25, 2**17):
        monkeypatch.setattr(turned, "LENGTH", length)
        torch.manual_seed(0)
        tensors = [torch.randn(4, 3, dtype=torch.float64).requires_grad_() for _ in range(5)]
        optimizer = PortHamiltonian(tensors, pretrained="kronecker")
        for k in range(25):
            for i, p in enumerate(tensors):
                grad = torch.randn_like(p)
                p.grad = None if i == 1 + k % 7 else grad
            optimizer.step(loss=1.0)
        found.append(torch.stack([*tensors, *(optimizer.state[p]["second"] for p in tensors)]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[2], found[0], rtol=1e-9, atol=1e-12)


@CLASSES
@pytest.mark.parametrize("schedule", [{"total_steps": 25}, {"decay": (5.0, 0.5)}], ids=str)
@torch.no_grad()
def test_equal_to_the_pure_update_under_a_schedule(learned, schedule):
    """Also where a tensor's gradient is 0, of any of them, and where all are; and after the last step."""
    start, gradients, losses = attack(30, "usual")
    tensors = [x.clone().requires_grad_() for x in start]
    learned = type(learned)(hidden_size=8, clock=50, **schedule)
    optimizer = PortHamiltonian(tensors, pretrained=learned, total_steps=schedule.get("total_steps"))
    reference, params, state = pure(learned, start, torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of steps after the last
        for k, (grads, loss) in enumerate(zip(gradients, losses, strict=True)):
            for i, (p, g) in enumerate(zip(tensors, grads, strict=True)):
                p.grad = g.mul_(0.0 if k % 7 == i or k in (0, 12) else 1.0).clone()
            before = [p.clone() for p in tensors]
            optimizer.step(loss=loss)
            packed = Params.from_tensors({str(i): g[None] for i, g in enumerate(grads)})
            params, state = reference.update(params, packed, loss[None], state)
            for i, p in enumerate(tensors):
                torch.testing.assert_close(p, params[str(i)][0], rtol=1e-8, atol=1e-11)
                assert torch.equal(p, before[i]) == (not grads[i].any() or (k >= 25 and "total_steps" in schedule))


@pytest.mark.parametrize("compile", COMPILE)
@torch.no_grad()
def test_float32_stays_near_the_pure_update(learned, compile):
    start, gradients, losses = attack(20, "usual", torch.float32)
    tensors = [x.clone().requires_grad_() for x in start]
    optimizer = PortHamiltonian(tensors, pretrained=learned, compile=compile)
    reference, params, state = pure(learned, start, torch.float32)
    for grads, loss in zip(gradients, losses, strict=True):
        for p, g in zip(tensors, grads, strict=True):
            p.grad = g.clone()
        optimizer.step(loss=loss)
        packed = Params.from_tensors({str(i): g[None] for i, g in enumerate(grads)})
        params, state = reference.update(params, packed, loss[None], state)
    for i, p in enumerate(tensors):
        torch.testing.assert_close(p, params[str(i)][0], rtol=1e-4, atol=1e-5)
    assert optimizer.state[tensors[0]]["momentum"].dtype == torch.float32


@pytest.mark.parametrize("made", [Learned, PortHamiltonianKronecker])
@pytest.mark.parametrize("compile", COMPILE)
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@torch.no_grad()
def test_energy_and_radius_hold_under_attack(made, compile, weight_decay):
    torch.manual_seed(5)
    learned = made(hidden_size=4, budget=3.0, radius=2.0)
    for p in learned.parameters():
        p += torch.randn_like(p)
    tensors = [torch.randn(6, 3).requires_grad_(), torch.randn(5).requires_grad_()]
    groups = [{"params": tensors[:1], "weight_decay": 2 * weight_decay}, {"params": tensors[1:]}]
    optimizer = PortHamiltonian(groups, lr=30.0, weight_decay=weight_decay, pretrained=learned, compile=compile)
    before = radius = torch.inf
    for k in range(300):
        for p in tensors:
            p.grad = torch.randn_like(p) * 10.0 ** torch.randint(-8, 9, ()).item()
        if k % 7 == 3:
            tensors[1].grad = None
        optimizer.step(loss=10 ** (3 * torch.randn(())))
        found = optimizer.diagnostics()
        assert found["energy"] <= before
        in_use = found["kinetic"] + found["spring"]
        assert in_use <= found["energy"] * (1 + 1e-5)
        memories = [optimizer.state[p] for p in tensors if p in optimizer.state]
        momentum = [memory["momentum"] for memory in memories]
        assert found["kinetic"] == pytest.approx(0.5 * sum(m.square().sum().item() for m in momentum), rel=1e-4)
        assert sum(p.square().sum() for p in tensors).sqrt() <= optimizer.radius() * (1 + 1e-5)
        assert optimizer.radius() <= radius
        before, radius = found["energy"], optimizer.radius()
    assert optimizer.skipped == 0 and found["tank"] >= -1e-5 * found["energy"]


@CLASSES
@pytest.mark.parametrize("compile", COMPILE)
@torch.no_grad()
def test_lr_of_zero_moves_nothing(learned, compile):
    tensors = [torch.randn(5, 2).requires_grad_(), torch.randn(3, 3).requires_grad_()]
    groups = [{"params": tensors[:1]}, {"params": tensors[1:], "lr": 0.0}]
    optimizer = PortHamiltonian(groups, weight_decay=0.5, pretrained=learned, compile=compile)
    for k in range(6):
        for p in tensors:
            p.grad = torch.randn_like(p)
        if k == 3:
            optimizer.param_groups[0]["lr"] = 0.0
            now = tensors[0].clone()
        start = tensors[1].clone()
        optimizer.step(loss=1.0)
        assert torch.equal(tensors[1], start)
    assert torch.equal(tensors[0], now)


@torch.no_grad()
def test_lr_scales_the_square_of_the_step(learned):
    moved = []
    for lr in (1.0, 0.25):
        p = torch.ones(4, requires_grad=True)
        p.grad = torch.tensor([1.0, -2.0, 3.0, 0.5])
        optimizer = PortHamiltonian([p], lr=lr, pretrained=learned)
        optimizer.step(loss=1.0)
        moved.append((p - 1) / optimizer.diagnostics()["trust"])  # which is smaller after a larger step
    torch.testing.assert_close(moved[1], 0.25 * moved[0], rtol=1e-3, atol=1e-6)


@CLASSES
@pytest.mark.parametrize("compile", COMPILE)
@torch.no_grad()
def test_weight_decay_is_that_of_adamw(learned, compile):
    """At AdamW's default learning rate, also without a gradient to speak of, and whatever the learned rates are."""
    start = torch.randn(6, 5, dtype=torch.float64)
    p, q = (start.clone().requires_grad_() for _ in range(2))
    ours = PortHamiltonian([p], lr=0.5, weight_decay=3.0, pretrained=learned, compile=compile)
    theirs = torch.optim.AdamW([q], lr=0.5e-3, weight_decay=3.0)
    for _ in range(20):
        p.grad, q.grad = torch.zeros_like(p), torch.zeros_like(q)
        ours.step(loss=1.0)
        theirs.step()
    torch.testing.assert_close(p, q, rtol=1e-12, atol=0)
    ours.param_groups[0]["weight_decay"] = 1e9  # no more than everything
    ours.step(loss=1.0)
    assert not p.any()


def test_without_a_compiler_one_clear_line(monkeypatch, learned, tmp_path):
    fused.load_library.cache_clear()
    monkeypatch.setattr(fused.shutil, "which", lambda _: None)
    with pytest.raises(fused.CompilerError, match="there is no C\\+\\+ compiler"):
        PortHamiltonian([torch.ones(1, requires_grad=True)], pretrained=learned, compile=True)
    failing = tmp_path / "failing"
    failing.write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    failing.chmod(0o700)
    monkeypatch.setattr(fused.shutil, "which", lambda _: str(failing))
    monkeypatch.setenv("PH_L2O_CACHE", str(tmp_path))
    with pytest.raises(fused.CompilerError, match="failing failed \\(broken\\)"):
        PortHamiltonian([torch.ones(1, requires_grad=True)], pretrained=learned, compile=True)
    fused.load_library.cache_clear()


@needs_compiler
@torch.no_grad()
def test_several_threads_take_the_same_step(learned, monkeypatch):
    monkeypatch.setattr(fused, "_LENGTH", 7)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            torch.manual_seed(0)
            tensors = [torch.randn(50).requires_grad_(), torch.randn(9, dtype=torch.float64).requires_grad_()]
            optimizer = PortHamiltonian(tensors, pretrained=learned, compile=True)
            for _ in range(3):
                for p in tensors:
                    p.grad = torch.randn_like(p)
                optimizer.step(loss=1.0)
        finally:
            torch.set_num_threads(1)
        found.append([p.detach().clone() for p in tensors])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
