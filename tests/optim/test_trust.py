"""What no training loop may lose by the shipped optimizers: weights without gradient, or set from outside.

AdamW is the standard: where it leaves weights alone, so do these.
"""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ph_l2o.optim import PortHamiltonian
from tests.optim.conftest import needs_compiler

FORMS = {
    "default": {},
    "compiled": {"compile": True},
    "kronecker": {"pretrained": "kronecker"},
    "kronecker_compiled": {"pretrained": "kronecker", "compile": True},
}


@pytest.fixture(params=[pytest.param(k, marks=needs_compiler if "compiled" in k else ()) for k in FORMS])
def make(request):
    """Makes one form of the drop-in."""
    return lambda params, **options: PortHamiltonian(params, **FORMS[request.param], **options)


class LoRA(nn.Module):
    """A frozen matrix and a product A B beside it, with B = 0 at the start."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.a, self.b = nn.Parameter(torch.randn(6, 2)), nn.Parameter(torch.zeros(2, 6))

    def forward(self, x):
        return self.frozen(x) + x @ self.a @ self.b


class Experts(nn.Module):
    """Two networks, of which a batch goes through one."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, x, k=0):
        return self.experts[k](x) + 0 * self.experts[1 - k](x)


def zero_head() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    nn.init.zeros_(model[2].weight)
    return model


def dead_unit() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    nn.init.constant_(model[0].bias, -100.0)
    return model


# Model, and the parameters whose gradient is 0 in the first step.
WITHOUT_GRADIENT = {
    "zero-initialised head": (zero_head, ("0.weight", "0.bias")),
    "LoRA's A": (LoRA, ("a",)),
    "dead units": (dead_unit, ("0.weight", "0.bias", "2.weight")),
    "unused expert": (Experts, ("experts.1.weight", "experts.1.bias")),
}


def loss_of(model: nn.Module, seed: int = 0, **arguments) -> torch.Tensor:
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(seed))
    return (model(x, **arguments) - x.flip(1)).square().mean()


def step(optimizer, loss: torch.Tensor, *, given: bool = True) -> float:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step(loss=loss if given else None)
    return loss.item()


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("case", WITHOUT_GRADIENT)
def test_what_has_no_gradient_stays(make, case, given):
    torch.manual_seed(0)
    build, names = WITHOUT_GRADIENT[case]
    model = build()
    optimizer = make(model.parameters(), lr=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = [step(optimizer, loss_of(model), given=given)]
    for name, p in model.named_parameters():
        assert (torch.equal(p, before[name])) == (name in names or not p.requires_grad), name
    losses += [step(optimizer, loss_of(model), given=given) for _ in range(20)]
    assert losses[-1] < losses[0]
    for name in names:
        assert dict(model.named_parameters())[name].norm() > 0.5 * before[name].norm(), name


def test_gradients_that_are_all_zero_change_nothing(make):
    """A fully masked batch, a policy before its first reward; then it learns as if nothing had been."""
    torch.manual_seed(0)
    ends = []
    for masked in (0, 50):
        torch.manual_seed(0)
        model = nn.Linear(6, 6)
        optimizer, start = make(model.parameters()), model.weight.detach().clone()
        for _ in range(masked):
            step(optimizer, 0 * loss_of(model))
        assert torch.equal(model.weight, start)
        ends.append([step(optimizer, loss_of(model, k)) for k in range(40)][-1])
    assert ends[0] < 0.3 and ends[1] < 2 * ends[0] + 0.1


@pytest.mark.parametrize("ratio", [1e-2, 1e-4, 1e-6, 1e-10, 1e-30, 0.0])
def test_what_has_a_tiny_gradient_is_not_pulled_to_zero(make, ratio):
    """The gradient of one tensor is noise, so small beside the other's: AdamW keeps .99 and more."""
    torch.manual_seed(0)
    tensors = [torch.ones(40, 30, requires_grad=True), torch.ones(40, 30, requires_grad=True)]
    optimizer = make(tensors)
    for _ in range(20):
        for p, size in zip(tensors, (1.0, ratio), strict=True):
            p.grad = size * torch.randn_like(p)
        optimizer.step()
    assert tensors[1].mean() > 0.9


def test_rows_of_an_embedding_that_are_not_used_stay(make):
    torch.manual_seed(0)
    table = nn.Embedding(50, 8)
    head = nn.Linear(8, 3)
    optimizer = make([*table.parameters(), *head.parameters()])
    unused = table.weight[25:].detach().clone()
    for k in range(100):
        index = torch.randint(25, (16,), generator=torch.Generator().manual_seed(k))
        step(optimizer, F.cross_entropy(head(table(index)), index % 3))
    moved = (table.weight[25:] - unused).norm() / unused.norm()
    assert moved < (0.05 if optimizer._rotation is None else 1.0)  # turned coordinates mix the rows of a table


@pytest.mark.parametrize("after", [0.0, 1e-12])
def test_a_gradient_that_ends_does_not_let_a_tensor_run_away(make, after):
    p, q = torch.ones(3, requires_grad=True), torch.ones(5, requires_grad=True)
    optimizer = make([p, q], lr=0.1)
    for k in range(200):
        p.grad = torch.full((3,), 1.0 if k == 0 else after)
        q.grad = torch.randn(5)
        optimizer.step()
        if k == 0:
            first = (p - 1).abs().max().item()
    assert (p - 1).abs().max() <= 6 * 11 * first  # of AdamW, 6; ours warms up, from 1/11 of a whole step


def test_two_heads_in_turn(make):
    """With gradients that are set to 0, not to None."""
    torch.manual_seed(0)
    trunk, heads = nn.Linear(6, 8), [nn.Linear(8, 6), nn.Linear(8, 6)]
    optimizer = make([p for module in (trunk, *heads) for p in module.parameters()])
    losses = []
    for k in range(400):
        optimizer.zero_grad(set_to_none=False)
        loss = loss_of(nn.Sequential(trunk, nn.Tanh(), heads[k // 50 % 2]), k)
        loss.backward()
        optimizer.step(loss=loss)
        losses.append(loss.item())
    assert sum(losses[-50:]) < 0.5 * sum(losses[:50])


def test_without_the_loss_a_transformer_trains(make):
    """Pre-LN, two layers; classes of tokens. AdamW gets to .00."""
    torch.manual_seed(0)
    layers = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True, norm_first=True)
    model = nn.Sequential(nn.Embedding(20, 16), nn.TransformerEncoder(layers, 2, enable_nested_tensor=False))
    model.append(nn.Linear(16, 5))
    optimizer, losses = make(model.parameters()), []
    for k in range(160):
        x = torch.randint(20, (8, 8), generator=torch.Generator().manual_seed(k))
        losses.append(step(optimizer, F.cross_entropy(model(x).flatten(0, 1), (x % 5).flatten()), given=False))
    assert sum(losses[-40:]) / 40 < 0.1


def test_the_loss_by_an_attribute_is_as_by_an_argument(make):
    ends = []
    for way in ("argument", "attribute"):
        torch.manual_seed(0)
        model = nn.Linear(6, 6)
        optimizer = make(model.parameters())
        for k in range(5):
            optimizer.zero_grad()
            loss = loss_of(model, k)
            loss.backward()
            if way == "argument":
                optimizer.step(loss=loss)
            else:
                optimizer.loss = loss
                optimizer.step()
                assert optimizer.loss is None
        ends.append(model.weight.detach().clone())
    assert torch.equal(*ends) and optimizer.diagnostics()["uses_loss"]
    optimizer.step()  # nothing is left of the last one
    assert not optimizer.diagnostics()["uses_loss"]


# Options of the groups.


def test_an_lr_that_rounding_has_put_below_zero_is_zero(make):
    p = torch.ones(3, requires_grad=True)
    optimizer = make([p])
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.9, 0.0, 5)
    for _ in range(6):
        p.grad = torch.ones(3)
        optimizer.step(loss=1.0)
        schedule.step()
        before = p.detach().clone()
    assert optimizer.param_groups[0]["lr"] <= 0
    optimizer.step(loss=1.0)
    assert torch.equal(p, before) and p.isfinite().all() and optimizer.skipped == 0


@pytest.mark.parametrize("value", [math.nan, -1.0, math.inf, -1e-3])
@pytest.mark.parametrize("name", ["lr", "weight_decay"])
def test_options_set_out_of_range_change_nothing(make, name, value):
    p = torch.ones(3, requires_grad=True)
    optimizer = make([p])
    p.grad = torch.ones(3)
    optimizer.step(loss=1.0)
    before, state = p.detach().clone(), optimizer.diagnostics()
    optimizer.param_groups[0][name] = value
    with pytest.raises(ValueError, match=rf"^{name}={value}: must be >= 0 and finite$"):
        optimizer.step(loss=1.0)
    assert torch.equal(p, before) and optimizer.diagnostics() == state


def test_an_lr_of_adamw_warns_once(make):
    p = torch.ones(3, requires_grad=True)
    with pytest.warns(UserWarning, match=r"lr=0.001 is a factor of learned learning rates") as seen:
        make([p], lr=1e-3)
    assert len(seen) == 1


def test_total_steps_is_the_schedule_of_a_scheduler(make):
    """Linear up over 5 %, then down, as by torch's schedulers; later steps change nothing, said once."""
    ends, total = [], 40
    for scheduled in (True, False):
        torch.manual_seed(0)
        model = nn.Linear(6, 6)
        optimizer = make(model.parameters(), **({} if scheduled else {"total_steps": total}))
        if scheduled:
            rise = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 3, 1.0, 2)
            falling = lambda k: (1 - k / (total - 2)) / math.sqrt(1 + k / 500)  # noqa: E731
            fall = torch.optim.lr_scheduler.LambdaLR(optimizer, falling)
            schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, fall], [2])
        for k in range(total):
            step(optimizer, loss_of(model, k))
            if scheduled:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    schedule.step()
        ends.append(model.weight.detach().clone())
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)
    before = model.weight.detach().clone()
    with pytest.warns(UserWarning, match="total_steps=40 steps are done, further ones change nothing") as seen:
        for k in range(3):
            step(optimizer, loss_of(model, k))
    assert len(seen) == 1 and torch.equal(model.weight, before)


# Weights that are set from outside.


@pytest.mark.parametrize("factor", [1e2, 1e5])
@pytest.mark.parametrize("weight_decay", [0.0, 10.0])
def test_weights_that_are_loaded_stay_where_they_are(make, factor, weight_decay):
    """Also beyond the ball, which grows with them."""
    torch.manual_seed(0)
    p, q = torch.randn(6, 5, requires_grad=True), torch.randn(4, requires_grad=True)
    optimizer = make([p, q], lr=0.05, weight_decay=weight_decay)
    for k in range(20):
        p.grad, q.grad = torch.randn_like(p), torch.randn_like(q)
        if k == 10:
            with torch.no_grad():
                p.mul_(factor)
            loaded = p.detach().clone()
        optimizer.step(loss=1.0)
        assert math.hypot(p.detach().norm(), q.detach().norm()) <= optimizer.radius() * (1 + 1e-5)
    decay = (1 - 0.05e-3 * weight_decay) ** 10
    assert (p.detach() - decay * loaded).norm() < 0.1 * loaded.norm()


def test_an_appended_parameter_stays_where_it_is(make):
    p, q = torch.ones(4, requires_grad=True), torch.full((4,), 1e6, requires_grad=True)
    optimizer = make([p])
    for k in range(10):
        if k == 5:
            optimizer.param_groups[0]["params"].append(q)
        p.grad, q.grad = torch.ones(4), torch.ones(4)
        optimizer.step(loss=1.0)
    assert q.min() > 0.9e6 and p.isfinite().all()


@pytest.mark.parametrize("value", [-math.inf, math.nan, 1e38])
def test_frozen_parameters_have_no_part_in_it(make, value):
    ends = []
    for frozen in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(6, 6)
        mask = nn.Parameter(torch.full((3, 3), value), requires_grad=False)
        optimizer = make([mask, *model.parameters()] if frozen else model.parameters())
        for k in range(5):
            step(optimizer, loss_of(model, k))
        ends.append(model.weight.detach().clone())
    assert torch.equal(*ends) and optimizer.skipped == 0 and math.isfinite(optimizer.radius())


@pytest.mark.parametrize("value", [-math.inf, math.nan])
def test_an_entry_that_is_not_finite_stays_alone(make, value):
    """In a tensor whose gradient is 0; the others are trained as they were."""
    torch.manual_seed(0)
    model = nn.Linear(6, 6)
    mask = torch.full((3, 3), value, requires_grad=True)
    optimizer = make([mask, *model.parameters()])
    losses = []
    for _ in range(20):
        mask.grad = torch.zeros(3, 3)
        losses.append(step(optimizer, loss_of(model)))
        mask.grad = None
    assert losses[-1] < 0.5 * losses[0] and optimizer.skipped == 0


@pytest.mark.parametrize("size", [1e25, 1e38])
def test_huge_finite_gradients_are_steps(make, size):
    torch.manual_seed(0)
    p = torch.randn(20, 10, requires_grad=True)
    optimizer, start = make([p]), p.detach().clone()
    for _ in range(3):
        p.grad = size * torch.randn(20, 10).clamp(-3, 3)
        optimizer.step()
    assert optimizer.skipped == 0 and p.isfinite().all() and not torch.equal(p, start)
