import math

import pytest
import torch

from ph_l2o.params import Layout, Params

SHAPES = {
    "usual": {"weight": (2, 3), "bias": (3,), "kernel": (2, 1, 2, 2)},
    "scalars": {"a": (), "weight": (4,), "b": ()},
    "only a scalar": {"a": ()},
    "one": {"theta": (5,)},
    "empty": {"weight": (2, 2), "nothing": (0, 3)},
}
every_shape = pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)


def make_tensors(shapes, num_problems: int = 3) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(num_problems, *shape, dtype=torch.float64) for name, shape in shapes.items()}


@pytest.mark.parametrize("num_problems", [1, 3])
@every_shape
def test_round_trip(shapes, num_problems):
    tensors = make_tensors(shapes, num_problems)
    params = Params.from_tensors(tensors)
    assert params.layout == Layout(tuple(shapes), tuple(shapes.values()))
    assert params.layout.sizes == tuple(math.prod(s) for s in shapes.values())
    assert params.flat.shape == (num_problems, params.layout.numel) and params.num_problems == num_problems
    back = params.tensors()
    assert list(back) == list(shapes) == list(params)
    for name, tensor in tensors.items():
        assert back[name].shape == (num_problems, *shapes[name])
        assert torch.equal(back[name], tensor)
        assert torch.equal(params[name], tensor)
    for i in range(num_problems):  # each row holds the tensors in their order
        assert torch.equal(params.flat[i], torch.cat([t[i].flatten() for t in tensors.values()]))


@every_shape
def test_flat_is_a_copy_and_tensors_are_views(shapes):
    tensors = make_tensors(shapes)
    params = Params.from_tensors(tensors)
    before = params.flat.clone()
    for tensor in tensors.values():
        tensor.zero_()
    assert torch.equal(params.flat, before)
    params.flat.fill_(7.0)
    assert all((view == 7).all() for view in params.tensors().values())


@every_shape
def test_views_of_a_row_that_is_not_contiguous(shapes):
    params = Params.from_tensors(make_tensors(shapes))
    for flat in (params.flat.mT.contiguous().mT, params.flat.repeat_interleave(2, 1)[:, ::2]):
        for name, view in params.like(flat).tensors().items():
            assert torch.equal(view, params[name])


@every_shape
def test_gradients_flow_to_the_flat_tensor_and_from_the_tensors(shapes):
    tensors = {name: t.requires_grad_() for name, t in make_tensors(shapes).items()}
    params = Params.from_tensors(tensors)
    params.flat.retain_grad()
    sum((k + 1) * t.pow(3).sum() for k, t in enumerate(params.tensors().values())).backward()
    factors = params.layout.expand(torch.arange(1.0, params.layout.num_tensors + 1, dtype=torch.float64))
    torch.testing.assert_close(params.flat.grad, 3 * factors * params.flat.detach().square())
    for k, tensor in enumerate(tensors.values()):
        torch.testing.assert_close(tensor.grad, 3 * (k + 1) * tensor.detach().square())


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
@every_shape
def test_expand_and_sum(shapes, lead):
    layout = Layout(tuple(shapes), tuple(shapes.values()))
    per_tensor, flat = torch.randn(*lead, layout.num_tensors), torch.randn(*lead, layout.numel)
    expanded, sums = torch.empty(*lead, layout.numel), torch.zeros(*lead, layout.num_tensors)
    position = 0
    for t, size in enumerate(layout.sizes):
        for _ in range(size):
            expanded[..., position] = per_tensor[..., t]
            sums[..., t] += flat[..., position]
            position += 1
    actual = layout.expand(per_tensor)
    assert actual.shape == ((*lead, 1) if layout.num_tensors == 1 else expanded.shape)
    assert torch.equal(actual.expand_as(expanded), expanded)
    torch.testing.assert_close(layout.sum(flat), sums)


@pytest.mark.parametrize("name", ["usual", "scalars", "one"])
def test_expand_and_sum_are_differentiable(name):
    shapes = SHAPES[name]
    layout = Layout(tuple(shapes), tuple(shapes.values()))
    per_tensor = torch.randn(2, layout.num_tensors, dtype=torch.float64, requires_grad=True)
    flat = torch.randn(2, layout.numel, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layout.expand, per_tensor)
    assert torch.autograd.gradcheck(layout.sum, flat)


def test_mapping():
    params = Params.from_tensors(make_tensors(SHAPES["usual"]))
    assert len(params) == 3 and "bias" in params and "other" not in params
    assert [name for name, _ in params.items()] == ["weight", "bias", "kernel"]
    with pytest.raises(KeyError):
        params["other"]


def test_detach_cuts_the_graph():
    params = Params.from_tensors({"a": torch.ones(2, 3, requires_grad=True)})
    assert params.flat.requires_grad and not params.detach().flat.requires_grad
    assert params.detach().layout is params.layout
