"""Recurrent layers written out in plain operations.

torch's fused `gru`, `lstm` and `rnn` have no rule for `vmap`. Under `PlainRecurrence` the layers of `torch.nn` compute
the same with a loop over time, which vmap and two derivatives pass through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

State = tuple[Tensor, ...]  # of a cell: (h,), or (h, c) of an LSTM
Cell = Callable[[Tensor, Tensor, State], State]  # affine maps of input and hidden state, and the state


def _gru(from_input: Tensor, from_hidden: Tensor, state: State) -> State:
    (h,) = state
    inputs, hidden = from_input.chunk(3, -1), from_hidden.chunk(3, -1)
    reset = torch.sigmoid(inputs[0] + hidden[0])
    update = torch.sigmoid(inputs[1] + hidden[1])
    new = torch.tanh(inputs[2] + reset * hidden[2])
    return (new + update * (h - new),)


def _lstm(from_input: Tensor, from_hidden: Tensor, state: State) -> State:
    _, c = state
    i, f, g, o = (from_input + from_hidden).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _elman(activation: Callable[[Tensor], Tensor]) -> Cell:
    def cell(from_input: Tensor, from_hidden: Tensor, state: State) -> State:
        return (activation(from_input + from_hidden),)

    return cell


CELLS: dict[str, Cell] = {
    "gru": _gru,
    "lstm": _lstm,
    "rnn_tanh": _elman(torch.tanh),
    "rnn_relu": _elman(torch.relu),
}


class PlainRecurrence(TorchFunctionMode):
    """A context in which torch's recurrent layers and cells run as plain operations."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name: str = getattr(func, "__name__", "")
        if name in CELLS:
            return _layers(CELLS[name], *args)
        if name.removesuffix("_cell") in CELLS:
            return _one_step(CELLS[name.removesuffix("_cell")], *args)
        return func(*args, **(kwargs or {}))


def _one_step(
    cell: Cell,
    x: Tensor,
    hx: Tensor | State,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor | State:
    state = (hx,) if isinstance(hx, Tensor) else tuple(hx)
    state = cell(F.linear(x, w_ih, b_ih), F.linear(state[0], w_hh, b_hh), state)
    return state[0] if isinstance(hx, Tensor) else state


def _layers(
    cell: Cell,
    x: Tensor,
    hx: Tensor | State,
    weights: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """The arguments of torch's own functions, all layers and directions, for `x` of shape `(time, batch, in)`."""
    if not isinstance(has_biases, bool):
        raise ValueError("task.model: packed sequences cannot run for several problems at once; pad them instead")
    directions = 1 + bidirectional
    each = len(weights) // (num_layers * directions)
    if each != 2 + 2 * has_biases:
        raise ValueError("task.model: an LSTM with proj_size cannot run for several problems at once")
    start = (hx,) if isinstance(hx, Tensor) else tuple(hx)
    hidden = x.transpose(0, 1) if batch_first else x
    last: list[State] = []
    for layer in range(num_layers):
        if layer > 0 and dropout > 0:
            hidden = F.dropout(hidden, dropout, train)
        outputs: list[Tensor] = []
        for k in range(layer * directions, (layer + 1) * directions):
            own = (*weights[k * each : (k + 1) * each], *[None] * (4 - each))
            backward = k % directions == 1
            steps, state = _scan(cell, hidden.flip(0) if backward else hidden, tuple(s[k] for s in start), own)
            outputs.append(steps.flip(0) if backward else steps)
            last.append(state)
        hidden = torch.cat(outputs, -1)
    return hidden.transpose(0, 1) if batch_first else hidden, *(torch.stack(s) for s in zip(*last, strict=True))


def _scan(cell: Cell, x: Tensor, state: State, weights: Sequence[Tensor | None]) -> tuple[Tensor, State]:
    w_ih, w_hh, b_ih, b_hh = weights
    assert w_ih is not None and w_hh is not None
    outputs: list[Tensor] = []
    for x_t in x.unbind(0):
        state = cell(F.linear(x_t, w_ih, b_ih), F.linear(state[0], w_hh, b_hh), state)
        outputs.append(state[0])
    return torch.stack(outputs), state
