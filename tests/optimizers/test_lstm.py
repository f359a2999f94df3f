import math

import pytest
import torch
from torch import Tensor, nn

from ph_l2o.optimizers import LSTM
from ph_l2o.optimizers.preprocessing import log_and_sign
from ph_l2o.params import Layout, Params

STEPS = 5


def params_of(num_problems: int, num_coordinates: int, dtype: torch.dtype = torch.float64) -> Params:
    torch.manual_seed(2)
    flat = torch.randn(num_problems, num_coordinates, dtype=dtype)
    return Params(flat, Layout(("a", "b"), ((num_coordinates - 3,), (3,))))


def torch_cells(optimizer: LSTM) -> list[nn.LSTMCell]:
    """Torch's own cells with the same weights; their gates lie in the order i, f, g, o."""
    cells = []
    for cell in optimizer.cells:
        size = optimizer.hidden_size
        order = torch.cat([torch.arange(2 * size), torch.arange(3 * size, 4 * size), torch.arange(2 * size, 3 * size)])
        theirs = nn.LSTMCell(cell.weight.shape[1] - size, size, dtype=cell.weight.dtype)
        with torch.no_grad():
            weight_input, weight_hidden = cell.weight[order].split((theirs.input_size, size), 1)
            theirs.weight_ih.copy_(weight_input)
            theirs.weight_hh.copy_(weight_hidden)
            theirs.bias_ih.copy_(0.3 * cell.bias[order])
            theirs.bias_hh.copy_(0.7 * cell.bias[order])
        cells.append(theirs)
    return cells


def reference(optimizer: LSTM, params: Params, grads: list[Tensor]) -> list[Tensor]:
    cells = torch_cells(optimizer)
    states: list[tuple[Tensor, Tensor] | None] = [None] * len(cells)
    flat, path = params.flat, []
    for grad in grads:
        x = grad.flatten()[:, None]
        x = torch.cat(log_and_sign(x), 1) if optimizer.preprocess else x
        for k, cell in enumerate(cells):
            states[k] = cell(x, states[k])
            x = states[k][0]
        flat = flat + optimizer.output_scale * optimizer.output(x).view_as(flat)
        path.append(flat)
    return path


@pytest.mark.parametrize("preprocess", [False, True])
@pytest.mark.parametrize("coordinates", [40, 4500])  # problems share a tile; a problem has more than one
@pytest.mark.parametrize(("num_layers", "size"), [(1, 5), (2, 20), (3, 4)])
def test_matches_torch_lstm_cell(num_layers, size, coordinates, preprocess):
    torch.manual_seed(0)
    optimizer = LSTM(hidden_size=size, num_layers=num_layers, output_scale=0.3, preprocess=preprocess).double()
    params = params_of(3, coordinates)
    grads = [torch.randn_like(params.flat) * 10 ** torch.randn_like(params.flat) for _ in range(STEPS)]
    expected = reference(optimizer, params, grads)
    state, new = optimizer.init(params), params
    for grad, flat in zip(grads, expected, strict=True):
        new, state = optimizer.update(new, new.like(grad), None, state)
        torch.testing.assert_close(new.flat - params.flat, flat - params.flat, rtol=1e-10, atol=1e-14)
    assert state.hidden.shape == state.cell.shape == (3, num_layers, size, coordinates)


@pytest.mark.parametrize("coordinates", [40, 4500])
def test_gradients_match_torch_lstm_cell(coordinates):
    torch.manual_seed(0)
    optimizer = LSTM(hidden_size=6).double()
    params = params_of(2, coordinates)
    grads = [torch.randn_like(params.flat).requires_grad_() for _ in range(3)]
    wanted = [*grads, *optimizer.output.parameters()]
    theirs = torch.autograd.grad(reference(optimizer, params, grads)[-1].square().sum(), wanted)
    state, new = optimizer.init(params), params
    for grad in grads:
        new, state = optimizer.update(new, new.like(grad), None, state)
    ours = torch.autograd.grad(new.flat.square().sum(), wanted)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)


def test_log_and_sign():
    x = torch.tensor([math.e**3, -math.e, 1.0, -math.exp(-9.9), 0.5 * math.exp(-10), 0.0], dtype=torch.float64)
    size, sign = log_and_sign(x)
    torch.testing.assert_close(size, torch.tensor([0.3, 0.1, 0.0, -0.99, -1, -1], dtype=x.dtype))
    torch.testing.assert_close(sign, torch.tensor([1, -1, 1, -1, 0.5, 0], dtype=x.dtype))
    leaf = torch.zeros(2, requires_grad=True)
    sum(y.sum() for y in log_and_sign(leaf)).backward()
    assert leaf.grad is not None and leaf.grad.isfinite().all()


def test_initialised_as_torch_does():
    torch.manual_seed(0)
    optimizer = LSTM()
    bound = 1 / math.sqrt(20)
    for cell in optimizer.cells:
        for p in cell.parameters():
            assert p.abs().max() <= bound
            assert p.abs().max() > 0.9 * bound
    # 2 → 20 → 20 → 1 with one bias for each gate
    assert sum(p.numel() for p in optimizer.parameters()) == 80 * (22 + 1) + 80 * (40 + 1) + 21


def test_update_is_pure_and_coordinatewise():
    torch.manual_seed(0)
    optimizer = LSTM(hidden_size=4)
    params = params_of(4, 700, torch.float32)
    grads = params.like(torch.randn_like(params.flat))
    with torch.no_grad():
        params, state = optimizer.update(params, grads, None, optimizer.init(params))
        before = [t.clone() for t in (params.flat, grads.flat, *state)]
        first, again = (optimizer.update(params, grads, None, state) for _ in range(2))
        assert torch.equal(first[0].flat, again[0].flat)
        for old, now in zip(before, (params.flat, grads.flat, *state), strict=True):
            assert torch.equal(old, now)
        order = torch.randperm(700)
        shuffled = type(state)(*(s[..., order] for s in state))
        moved, _ = optimizer.update(
            params.like(params.flat[:, order]), grads.like(grads.flat[:, order]), None, shuffled
        )
        torch.testing.assert_close(moved.flat, first[0].flat[:, order])
        one = type(state)(*(s[2:3] for s in state))
        alone, _ = optimizer.update(params.like(params.flat[2:3]), grads.like(grads.flat[2:3]), None, one)
        torch.testing.assert_close(alone.flat, first[0].flat[2:3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_size": 0}, "optimizer.hidden_size=0: must be >= 1"),
        ({"num_layers": 0}, "optimizer.num_layers=0: must be >= 1"),
        ({"output_scale": 0.0}, "optimizer.output_scale=0.0: must be > 0"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        LSTM(**arguments)
