"""RNNprop against its formulas, one coordinate at a time, with torch's own LSTM cells."""

import pytest
import torch
from test_lstm import params_of, torch_cells
from torch import Tensor

from ph_l2o.inner import run
from ph_l2o.keys import ProblemKeys
from ph_l2o.optimizers import LSTM, RNNprop
from ph_l2o.params import Params
from ph_l2o.tasks import LogisticRegression, Quadratic

STEPS = 5


def reference(optimizer: RNNprop, params: Params, grads: list[Tensor]) -> list[Tensor]:
    """Section 4 of the paper, and its code, literally."""
    cells, states = torch_cells(optimizer), [None] * optimizer.num_layers
    b1, b2 = optimizer.beta1, optimizer.beta2
    m, v, flat, path = torch.zeros_like(params.flat), torch.zeros_like(params.flat), params.flat, []
    for t, g in enumerate(grads, start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        s = (v / (1 - b2**t)).sqrt() + optimizer.eps
        x = torch.nn.functional.elu(optimizer.input(torch.stack([g / s, m / (1 - b1**t) / s], -1).flatten(0, 1)))
        for k, cell in enumerate(cells):
            states[k] = cell(x, states[k])
            x = states[k][0]
        flat = flat - optimizer.output_scale * torch.tanh(optimizer.output(x)).view_as(flat)
        path.append(flat)
    return path


def gradients(params: Params) -> list[Tensor]:
    return [torch.randn_like(params.flat) * 10 ** torch.randn_like(params.flat) for _ in range(STEPS)]


@pytest.mark.parametrize("coordinates", [40, 4500])  # problems share a tile; a problem has more than one
@pytest.mark.parametrize("arguments", [{}, {"hidden_size": 3, "num_layers": 1, "beta1": 0.0, "beta2": 0.9, "eps": 0.1}])
def test_matches_the_formulas(arguments, coordinates):
    torch.manual_seed(0)
    optimizer = RNNprop(**{"output_scale": 0.3, **arguments}).double()
    params = params_of(3, coordinates)
    grads = gradients(params)
    state, new = optimizer.init(params), params
    for grad, flat in zip(grads, reference(optimizer, params, grads), strict=True):
        new, state = optimizer.update(new, new.like(grad), None, state)
        torch.testing.assert_close(new.flat - params.flat, flat - params.flat, rtol=1e-10, atol=1e-14)


def test_gradients_match_the_formulas():
    torch.manual_seed(0)
    optimizer, params = RNNprop(hidden_size=4).double(), params_of(2, 40)
    grads = [g.requires_grad_() for g in gradients(params)]
    wanted = [*grads, *optimizer.output.parameters(), *optimizer.input.parameters()]
    theirs = torch.autograd.grad(reference(optimizer, params, grads)[-1].square().sum(), wanted)
    state, new = optimizer.init(params), params
    for grad in grads:
        new, state = optimizer.update(new, new.like(grad), None, state)
    for a, b in zip(torch.autograd.grad(new.flat.square().sum(), wanted), theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_what_it_does_does_not_depend_on_the_unit_of_the_loss():
    torch.manual_seed(0)
    optimizer, params = RNNprop(eps=1e-30).double(), params_of(2, 20)
    ends = []
    for unit in (1.0, 1e6):
        state, new = optimizer.init(params), params
        for grad in gradients(params_of(2, 20)):
            new, state = optimizer.update(new, new.like(unit * grad), None, state)
        ends.append(new.flat)
    torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-12)


def test_steps_are_bounded_and_gradients_of_0_are_no_trouble():
    torch.manual_seed(0)
    optimizer, params = RNNprop(output_scale=0.1), params_of(2, 20, torch.float32)
    grad = torch.zeros_like(params.flat).requires_grad_()
    new, state = optimizer.update(params, params.like(grad), None, optimizer.init(params))
    new, state = optimizer.update(new, new.like(1e30 * params.flat), None, state)
    assert (new.flat - params.flat).abs().max() <= 0.2
    new.flat.sum().backward()
    assert grad.grad is not None and grad.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in optimizer.parameters())


def test_weights_are_the_lstms_and_a_layer_before_it():
    assert sum(p.numel() for p in RNNprop().parameters()) == 3 * 20 + 2 * 80 * (40 + 1) + 21
    torch.manual_seed(3)
    names = set(LSTM().state_dict())
    assert set(RNNprop().state_dict()) == names | {"input.weight", "input.bias"}


@pytest.mark.parametrize("task", [Quadratic(4), LogisticRegression(5, 3, examples=20, batch_size=4)])
def test_runs_on_tasks(task):
    torch.manual_seed(0)
    _, losses = run(RNNprop(), task.sample(ProblemKeys(0, "train", 0, range(3))), 10)
    assert losses.isfinite().all() and (losses[10] != losses[0]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_size": 0}, "optimizer.hidden_size=0: must be >= 1"),
        ({"beta1": 1.0}, r"optimizer.beta1=1.0: must be in \[0, 1\)"),
        ({"beta2": -0.1}, r"optimizer.beta2=-0.1: must be in \[0, 1\)"),
        ({"eps": 0.0}, "optimizer.eps=0.0: must be > 0"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        RNNprop(**arguments)
