"""The small networks against torch's own layers, and by finite differences."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ph_l2o.keys import ProblemKeys
from ph_l2o.tasks import MLP, BatchedModule, CausalAttention, ConvNet, ModuleProblem, RecurrentNet
from ph_l2o.tasks.mlp import ACTIVATIONS

F64 = torch.float64
CELLS = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn_tanh": nn.RNN, "rnn_relu": nn.RNN}
MODELS = {
    "conv": (lambda: ConvNet((3, 4)), (1, 7, 7)),
    "conv batch": (lambda: ConvNet((3, 4), norm="batch", activation="tanh"), (1, 7, 7)),
    "conv layer": (lambda: ConvNet((3,), norm="layer", kernel=5, in_channels=2), (2, 6, 6)),
    "mlp layer": (lambda: MLP([3, 4, 4, 2], "tanh", "layer"), (3,)),
    "mlp batch": (lambda: MLP([3, 4, 2], "elu", "batch"), (3,)),
    "attention": (lambda: CausalAttention(3, 5, 4, width=4, num_layers=2), (4, 3)),
    "attention without norm": (lambda: CausalAttention(3, 5, 4, width=4, norm=False), (4, 3)),
    **{
        cell: (lambda cell=cell: RecurrentNet(3, 5, 4, hidden_size=4, num_layers=2, cell=cell), (4, 3))
        for cell in CELLS
    },
}


def made(name: str, seed: int = 0) -> tuple[BatchedModule, Tensor]:
    factory, shape = MODELS[name]
    torch.manual_seed(seed)
    return factory().double(), torch.randn(6, *shape, dtype=F64)


class Fit(ModuleProblem):
    def loss(self, params, buffers, batch):
        outputs, buffers = self.outputs(params, buffers, batch)
        return outputs.flatten(1).square().mean(1), buffers


@pytest.mark.parametrize("name", MODELS)
def test_many_at_once_are_each_alone_and_have_two_derivatives(name):
    factory, shape = MODELS[name]
    keys = ProblemKeys(0, "train", 0, (4, 1))
    problem = Fit(keys, factory, dtype=F64)
    inputs = torch.randn(2, 5, *shape, dtype=F64)
    outputs, _ = problem.outputs(problem.params, {}, inputs)
    for row in range(2):
        module = factory().double()
        module.load_state_dict({k: t[row] for k, t in problem.params.tensors().items()})
        torch.testing.assert_close(outputs[row], module(inputs[row]))
    leaf = problem.params.flat.clone().requires_grad_()
    direction = torch.randn_like(leaf)

    def gradient(flat: Tensor) -> Tensor:
        loss = problem.loss(problem.params.like(flat), {}, inputs)[0].sum()
        return torch.autograd.grad(loss, flat, create_graph=True)[0]

    (product,) = torch.autograd.grad(gradient(leaf), leaf, direction)
    eps = 1e-6
    up, down = (gradient((leaf + s * eps * direction).detach().requires_grad_()).detach() for s in (1, -1))
    torch.testing.assert_close(product, (up - down) / (2 * eps), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("norm", "kernel"), [(None, 3), ("batch", 3), ("layer", 5)])
def test_convolutions_are_torchs(norm, kernel):
    torch.manual_seed(0)
    net = ConvNet((3, 4), kernel=kernel, norm=norm, activation="silu", in_channels=2, classes=6).double()
    x = torch.randn(5, 2, 9, 8, dtype=F64)
    out, hidden = net(x), x
    for k, (fan_in, fan_out) in enumerate(itertools.pairwise((2, 3, 4))):
        weight = getattr(net, f"weight{k}").T.reshape(fan_out, fan_in, kernel, kernel)
        hidden = F.conv2d(hidden, weight, getattr(net, f"bias{k}"), stride=2, padding=kernel // 2)
        if norm == "batch":
            hidden = F.batch_norm(hidden, None, None, training=True)
        elif norm == "layer":
            hidden = F.layer_norm(hidden.movedim(1, -1), (fan_out,)).movedim(-1, 1)
        hidden = F.silu(hidden)
    torch.testing.assert_close(out, F.linear(hidden.mean((2, 3)), net.weight_out.T, net.bias_out))


@pytest.mark.parametrize("cell", CELLS)
def test_recurrent_layers_are_torchs(cell):
    torch.manual_seed(0)
    net = RecurrentNet(3, 2, hidden_size=4, num_layers=2, cell=cell).double()
    kwargs = {"nonlinearity": cell.removeprefix("rnn_")} if cell.startswith("rnn") else {}
    layer = CELLS[cell](3, 4, num_layers=2, batch_first=True, **kwargs).double()
    for k in range(2):
        for theirs, ours in (("ih", "in"), ("hh", "hidden")):
            getattr(layer, f"weight_{theirs}_l{k}").data = getattr(net, f"weight_{ours}{k}").data.T.clone()
            getattr(layer, f"bias_{theirs}_l{k}").data = getattr(net, f"bias_{ours}{k}").data.clone()
    x = torch.randn(5, 6, 3, dtype=F64)
    torch.testing.assert_close(net(x), F.linear(layer(x)[0], net.weight_out.T, net.bias_out))


def test_attention_is_torchs():
    torch.manual_seed(0)
    net = CausalAttention(3, 2, 6, width=8, num_heads=2, num_layers=2).double()
    x = torch.randn(5, 6, 3, dtype=F64)
    layers = [
        nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True, norm_first=True).double() for _ in "ab"
    ]
    hidden = F.linear(x, net.weight_in.T, net.bias_in) + net.position
    for k, layer in enumerate(layers):
        parts = {
            "self_attn.in_proj_": "attend",
            "self_attn.out_proj.": "mix",
            "linear1.": "up",
            "linear2.": "down",
        }
        state = {f"{theirs}weight": getattr(net, f"weight_{ours}{k}").T for theirs, ours in parts.items()}
        state |= {f"{theirs}bias": getattr(net, f"bias_{ours}{k}") for theirs, ours in parts.items()}
        layer.load_state_dict(state, strict=False)
        hidden = layer(hidden, src_mask=nn.Transformer.generate_square_subsequent_mask(6, dtype=F64))
    expected = F.linear(F.layer_norm(hidden, (8,)), net.weight_out.T, net.bias_out)
    torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize("name", [n for n in MODELS if n.startswith("attention") or n in CELLS])
def test_nothing_is_seen_of_the_future(name):
    module, x = made(name)
    changed = x.clone()
    changed[:, 2:] += 1
    before, after = module(x), module(changed)
    torch.testing.assert_close(after[:, :2], before[:, :2])
    assert not torch.isclose(after[:, 2:], before[:, 2:]).any()


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_normed_perceptrons_are_torchs(norm):
    torch.manual_seed(0)
    net = MLP([3, 4, 5, 2], "relu", norm).double()
    for name, p in net.named_parameters():
        if name.startswith(("gain", "shift")):
            p.data += torch.randn_like(p)
    x = torch.randn(7, 3, dtype=F64)
    hidden = x
    for k in range(3):
        hidden = hidden @ getattr(net, f"weight{k}") + getattr(net, f"bias{k}")
        if k < 2:
            gain, shift = getattr(net, f"gain{k}"), getattr(net, f"shift{k}")
            if norm == "layer":
                hidden = F.layer_norm(hidden, hidden.shape[1:], gain, shift)
            else:
                hidden = F.batch_norm(hidden, None, None, gain, shift, training=True)
            hidden = hidden.relu()
    torch.testing.assert_close(net(x), hidden)


NAMES = ", ".join(ACTIVATIONS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvNet([0]), "task.model.channels=[0]: must be a list of whole numbers >= 1 (units)"),
        (lambda: ConvNet([]), "task.model.channels=[]: must have at least one layer"),
        (lambda: ConvNet(kernel=2), "task.model.kernel=2: must be an odd whole number >= 1"),
        (lambda: ConvNet(norm="group"), "task.model.norm=group: must be layer, batch or null"),
        (lambda: ConvNet(activation="rleu"), f"task.model.activation=rleu: must be one of {NAMES}; did you mean relu?"),
        (
            lambda: RecurrentNet(2, 2, cell="gruu"),
            "task.model.cell=gruu: must be one of gru, lstm, rnn_tanh, rnn_relu; did you mean gru?",
        ),
        (lambda: RecurrentNet(2, 2, hidden_size=0), "task.model.hidden_size=0: must be >= 1 (units of a layer)"),
        (lambda: RecurrentNet(2, 2, num_layers=0), "task.model.num_layers=0: must be >= 1 (layers)"),
        (lambda: CausalAttention(2, 2, 3, width=0), "task.model.width=0: must be >= 1 (of the residual stream)"),
        (lambda: CausalAttention(2, 2, 3, width=5), "task.model.width=5: must be a multiple of num_heads=2"),
        (
            lambda: CausalAttention(2, 2, 3, width=4, norm=False, post_norm=True),
            "task.model.post_norm=true: must be false where task.model.norm=false (there is no norm)",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == message
