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
Cell = Callable[[Tensor, State, Sequence[Tensor | None]], State]


def _gates(x: Tensor, h: Tensor, weights: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    w_ih, w_hh, b_ih, b_hh = weights
    assert w_ih is not None and w_hh is not None
    return F.linear(x, w_ih, b_ih), F.linear(h, w_hh, b_hh)


def _gru(x: Tensor, state: State, weights: Sequence[Tensor | None]) -> State:
    (h,) = state
    from_input, from_hidden = (g.chunk(3, -1) for g in _gates(x, h, weights))
    reset = torch.sigmoid(from_input[0] + from_hidden[0])
    update = torch.sigmoid(from_input[1] + from_hidden[1])
    new = torch.tanh(from_input[2] + reset * from_hidden[2])
    return (new + update * (h - new),)


def _lstm(x: Tensor, state: State, weights: Sequence[Tensor | None]) -> State:
    h, c = state
    from_input, from_hidden = _gates(x, h, weights)
    i, f, g, o = (from_input + from_hidden).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _elman(activation: Callable[[Tensor], Tensor]) -> Cell:
    def cell(x: Tensor, state: State, weights: Sequence[Tensor | None]) -> State:
        from_input, from_hidden = _gates(x, state[0], weights)
        return (activation(from_input + from_hidden),)

    return cell


_CELLS: dict[str, Cell] = {
    "gru": _gru,
    "lstm": _lstm,
    "rnn_tanh": _elman(torch.tanh),
    "rnn_relu": _elman(torch.relu),
}


class PlainRecurrence(TorchFunctionMode):
    """A context in which torch's recurrent layers and cells run as plain operations."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name: str = getattr(func, "__name__", "")
        if name in _CELLS:
            return _layers(_CELLS[name], *args)
        if name.removesuffix("_cell") in _CELLS:
            return _one_step(_CELLS[name.removesuffix("_cell")], *args)
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
    state = cell(x, (hx,) if isinstance(hx, Tensor) else tuple(hx), (w_ih, w_hh, b_ih, b_hh))
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
    outputs: list[Tensor] = []
    for x_t in x.unbind(0):
        state = cell(x_t, state, weights)
        outputs.append(state[0])
    return torch.stack(outputs), state
