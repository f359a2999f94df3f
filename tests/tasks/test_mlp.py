import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ph_l2o.params import Params
from ph_l2o.tasks import ACTIVATIONS, MLP
from ph_l2o.tasks.mlp import MixedActivation

F64 = torch.float64
MODULES = {
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
}
every_activation = pytest.mark.parametrize("name", ACTIVATIONS)


def as_sequential(mlp: MLP, sizes, activation: str) -> nn.Sequential:
    """The same network of torch's own layers."""
    layers: list[nn.Module] = [nn.Flatten()]
    for k, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        linear = nn.Linear(fan_in, fan_out, dtype=F64)
        tensors = dict(mlp.named_parameters())
        with torch.no_grad():
            linear.weight.copy_(tensors[f"weight{k}"].T)
            linear.bias.copy_(tensors[f"bias{k}"])
        layers += [linear, MODULES[activation]()]
    return nn.Sequential(*layers[:-1])


def transposed(tensor: Tensor) -> Tensor:
    return tensor.mT if tensor.dim() > 1 else tensor


def stacked(mlps: list[MLP]) -> dict[str, Tensor]:
    named = [dict(m.named_parameters()) for m in mlps]
    return {name: torch.stack([n[name].detach() for n in named]) for name in named[0]}


def test_every_activation_has_its_module():
    assert set(MODULES) == set(ACTIVATIONS)


@pytest.mark.parametrize("sizes", [(6, 3), (6, 5, 3), (6, 4, 7, 1, 3)])
@every_activation
def test_forward_is_that_of_linear_layers(name, sizes):
    torch.manual_seed(0)
    mlp = MLP(sizes, name).double()
    reference = as_sequential(mlp, sizes, name)
    inputs = torch.randn(4, 2, 3, dtype=F64)
    outputs, expected = mlp(inputs), reference(inputs)
    torch.testing.assert_close(outputs, expected)
    weights = torch.randn_like(expected)
    gradients = torch.autograd.grad((weights * outputs).sum(), list(mlp.parameters()))
    theirs = torch.autograd.grad((weights * expected).sum(), list(reference.parameters()))
    for actual, g in zip(gradients, theirs, strict=True):
        torch.testing.assert_close(actual, transposed(g))


@every_activation
def test_batched_forward_is_vmap_of_forward(name):
    torch.manual_seed(0)
    mlps = [MLP((6, 5, 4, 3), name).double() for _ in range(3)]
    tensors, inputs = stacked(mlps), torch.randn(3, 7, 6, dtype=F64)
    outputs = mlps[0].batched_forward(tensors, inputs)
    by_vmap = vmap(lambda t, x: functional_call(mlps[0], t, (x,)))(tensors, inputs)
    torch.testing.assert_close(outputs, by_vmap)
    for i, mlp in enumerate(mlps):
        torch.testing.assert_close(outputs[i], mlp(inputs[i]))


def test_inputs_are_flattened():
    torch.manual_seed(0)
    mlp = MLP((12, 2))
    images = torch.randn(5, 3, 2, 2)
    assert torch.equal(mlp(images), mlp(images.flatten(1)))


def test_start_is_that_of_linear_layers():
    torch.manual_seed(0)
    mlp, linear = MLP((100, 400)), nn.Linear(100, 400)
    for ours, theirs in zip(mlp.parameters(), (linear.weight, linear.bias), strict=True):
        assert ours.abs().max() <= 0.1 and theirs.abs().max() <= 0.1 + 1e-6
        assert ours.abs().max() > 0.099
        bound = 0.1 / ours.numel() ** 0.5
        assert abs(ours.mean()) < 5 * bound and abs(ours.std() - theirs.std()) < 5 * bound
    assert [tuple(p.shape) for p in mlp.parameters()] == [(100, 400), (400,)]


@pytest.mark.parametrize(
    "names", [("relu",), ("tanh", "tanh"), ("sigmoid", "relu", "tanh", "relu"), tuple(ACTIVATIONS), ("elu", "relu")]
)
def test_mixed_activation_is_each_by_itself(names):
    torch.manual_seed(0)
    hidden = torch.randn(len(names), 4, 5, dtype=F64)
    mixed = MixedActivation(names)(hidden)
    for i, name in enumerate(names):
        torch.testing.assert_close(mixed[i], MODULES[name]()(hidden[i]))


@pytest.mark.parametrize("names", [("sigmoid", "relu", "tanh"), tuple(ACTIVATIONS)])
def test_mixed_networks_are_each_by_itself_to_second_order(names):
    torch.manual_seed(0)
    sizes = (4, 6, 5, 3)
    mlps = [MLP(sizes, name).double() for name in names]
    params, inputs = Params.from_tensors(stacked(mlps)), torch.randn(len(names), 7, 4, dtype=F64)
    direction = torch.randn_like(params.flat)
    flat = params.flat.clone().requires_grad_()
    loss = mlps[0].batched_forward(params.like(flat).tensors(), inputs, MixedActivation(names)).square().sum((1, 2))
    (gradient,) = torch.autograd.grad(loss.sum(), flat, create_graph=True)
    (product,) = torch.autograd.grad((gradient * direction).sum(), flat)
    for i, (name, mlp) in enumerate(zip(names, mlps, strict=True)):
        reference = as_sequential(mlp, sizes, name)
        linears = [m for m in reference if isinstance(m, nn.Linear)]
        leaves = [p for linear in linears for p in (linear.weight, linear.bias)]
        along = [d[i] for d in params.like(direction).tensors().values()]
        expected = reference(inputs[i]).square().sum()
        first = torch.autograd.grad(expected, leaves, create_graph=True)
        second = torch.autograd.grad(sum((transposed(g) * d).sum() for g, d in zip(first, along, strict=True)), leaves)
        torch.testing.assert_close(loss[i], expected)
        torch.testing.assert_close(gradient[i], torch.cat([transposed(g).flatten() for g in first]))
        torch.testing.assert_close(product[i], torch.cat([transposed(g).flatten() for g in second]))


def test_a_network_that_overflows_leaves_the_others_alone():
    flat = torch.tensor([[[1e30]], [[0.5]]], requires_grad=True)
    out = MixedActivation(("elu", "tanh"))(flat)
    assert torch.equal(out[1], torch.tanh(flat[1]))
    (gradient,) = torch.autograd.grad(out.sum(), flat)
    assert gradient.isfinite().all()
