"""Strides, views, types and sizes of parameters and gradients, and what changes in them between steps."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.optim.conftest import FORMS, flat, loss_of, train

OURS = [name for name in FORMS if name != "AdamW"]


def column(start):
    base = torch.stack([start, torch.full_like(start, 7.0), torch.full_like(start, -7.0)], start.dim())
    return base[..., 0].detach(), lambda: torch.equal(
        base[..., 1:], (base * 0 + torch.tensor([1.0, 7.0, -7.0]))[..., 1:]
    )


def reversed_storage(start):
    return start.T.contiguous().T.detach(), lambda: True


def negated(grad):
    found = torch.complex(torch.zeros_like(grad), -grad).conj().imag  # the sign is a bit of the view
    assert found.is_neg()
    return found


GRADIENTS = {
    "expanded": lambda g: g[:1].expand_as(g),
    "negated": negated,
    "transposed": lambda g: g.T.contiguous().T,
    "sliced": lambda g: torch.stack([g, torch.full_like(g, torch.nan)], g.dim())[..., 0],
    "usual": lambda g: g,
}


@pytest.mark.parametrize("how", GRADIENTS)
@pytest.mark.parametrize("layout", [column, reversed_storage])
def test_views_step_as_their_copies_do(make, layout, how):
    torch.manual_seed(0)
    start, gradients = torch.randn(5, 4), torch.randn(4, 5, 4)
    view, untouched = layout(start)
    p, q = view.requires_grad_(), start.clone().requires_grad_()
    ours, theirs = make([p]), make([q])
    for grad in gradients:
        p.grad = GRADIENTS[how](grad)
        q.grad = p.grad.clone(memory_format=torch.contiguous_format).resolve_neg()
        ours.step()
        theirs.step()
    torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    assert untouched() and not torch.equal(p, start)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", OURS)
def test_a_model_of_another_type_goes_on(form, dtype, model):
    """AdamW raises an error here; what is remembered can be had in the new type."""
    optimizer = FORMS[form](model.parameters())
    train(model, optimizer, 3)
    model.to(dtype)
    before, start = flat(model), loss_of(model.float()).item() if dtype != torch.float64 else 1.0
    model.to(dtype)
    for k in range(3):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(k)).to(dtype)
        optimizer.step(loss=start)
    assert flat(model).isfinite().all() and not torch.equal(flat(model), before)
    kept = [x for p in model.parameters() for x in optimizer.state[p].values() if torch.is_tensor(x) and x.dim() > 1]
    assert {x.dtype for x in kept} == {torch.float64 if dtype == torch.float64 else torch.float32}
    twin = FORMS[form](copy.deepcopy(model).parameters())
    twin.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("shape", [(6, 4), (4, 4), (4, 5), (20,)], ids=str)
@pytest.mark.parametrize("form", OURS)
def test_data_of_another_shape_is_refused(form, shape):
    if form in ("LSTM", "Muon") and math.prod(shape) == 20:
        pytest.skip("what is remembered of coordinates has no shape")
    torch.manual_seed(0)
    first, p = torch.randn(3).requires_grad_(), torch.randn(5, 4).requires_grad_()
    optimizer = FORMS[form]([first, p])
    for x in (first, p):
        x.grad = torch.randn_like(x)
    optimizer.step()
    before, state = first.clone(), copy.deepcopy(optimizer.state_dict())
    p.data = torch.randn(shape)
    with pytest.raises(ValueError, match=r"and its gradient \(5, 4\): call zero_grad"):
        optimizer.step()
    p.grad = torch.ones(shape)
    with pytest.raises(ValueError, match=r"parameter 1 has shape .* now, .* del optimizer.state\[p\]"):
        optimizer.step()
    assert torch.equal(first, before)
    torch.testing.assert_close(optimizer.state_dict(), state, rtol=0, atol=0)
    del optimizer.state[p]
    optimizer.step()
    assert not torch.equal(first, before) and p.isfinite().all()


@pytest.mark.parametrize("form", ["PortHamiltonian", "compiled", "kronecker"])
def test_memory_that_was_put_there(form, model):
    """Of another type or with strides it is taken; of another size it is refused."""
    other = copy.deepcopy(model)
    optimizer, twin = (FORMS[form](m.parameters()) for m in (model, other))
    for m, o in ((model, optimizer), (other, twin)):
        train(m, o, 2)
    for p in model.parameters():
        memory = optimizer.state[p]
        memory["momentum"] = memory["momentum"].double()
        memory["second"] = torch.stack([memory["second"]] * 2, -1)[..., 0]
        assert p.dim() < 2 or not memory["second"].is_contiguous()
    for m, o in ((model, optimizer), (other, twin)):
        train(m, o, 2)
    assert torch.equal(flat(model), flat(other))
    optimizer.state[model[0].weight]["second"] = torch.zeros(8, 3)
    with pytest.raises(ValueError, match=r"second of \(8, 3\)"):
        train(model, optimizer, 1)


def test_parameters_that_overlap_themselves_are_refused():
    with pytest.raises(ValueError, match="overlaps"):
        FORMS["PortHamiltonian"]([nn.Parameter(torch.ones(1).expand(3))])


def test_parameters_whose_shape_is_to_come(make):
    """A lazy module's; and what never gets a gradient may have no data at all."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1))
    never = nn.Parameter(torch.empty(2, device="meta")), nn.Parameter(torch.ones(2, dtype=torch.int64), False)
    optimizer = make([*net.parameters(), nn.LazyLinear(1).weight, *never])
    optimizer.step()
    before = None
    for _ in range(2):
        loss = net(torch.randn(5, 4)).square().mean()
        before = flat(net) if before is None else before
        loss.backward()
        optimizer.step(lambda loss=loss: loss)
    assert flat(net).isfinite().all() and not torch.equal(flat(net), before)


@pytest.mark.parametrize("form", OURS)
def test_what_is_no_real_number_is_refused(form):
    first = nn.Parameter(torch.ones(2))
    for p in (torch.ones(2, dtype=torch.int64), torch.ones(2, device="meta")):
        optimizer = FORMS[form]([first, p])
        first.grad, p.grad = torch.ones(2), torch.ones_like(p)
        with pytest.raises(TypeError, match=f"parameter 1 is of {p.dtype} on {p.device}: only real numbers"):
            optimizer.step(lambda: 1.0)
        assert first.tolist() == [1, 1] and not optimizer.state


def test_losses_of_all_kinds(form="PortHamiltonian"):
    p = nn.Parameter(torch.ones(2))
    found = []
    for loss in (2, 2.0, np.float32(2), np.array([2.0]), torch.tensor([[2.0]]), torch.tensor(2, dtype=torch.int32)):
        p.data.fill_(1.0)
        p.grad = torch.tensor([1.0, -2.0])
        FORMS[form]([p]).step(loss=loss)
        found.append(p.tolist())
    assert all(x == found[0] for x in found) and found[0] != [1, 1]
