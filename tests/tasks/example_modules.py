"""Modules of many kinds, as optimizees of the tests."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Recurrent(nn.Module):
    def __init__(self, layer: nn.RNNBase):
        super().__init__()
        self.layer = layer
        out = layer.hidden_size * (1 + layer.bidirectional)
        self.last = nn.Linear(out, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.layer.batch_first else x.transpose(0, 1)
        outputs, hidden = self.layer(x)
        hidden = sum(h.sum() for h in hidden) if isinstance(hidden, tuple) else hidden.sum()
        return self.last(outputs if self.layer.batch_first else outputs.transpose(0, 1)) + hidden


class CellInALoop(nn.Module):
    def __init__(self, cell: nn.RNNCellBase):
        super().__init__()
        self.cell, self.last = cell, nn.Linear(cell.hidden_size, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for x_t in x.unbind(1):
            state = self.cell(x_t, state)
        hidden = state[0] if isinstance(state, tuple) else state
        return self.last(hidden)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Scalars(nn.Module):
    """Parameters without a dimension, buffers of integer and boolean type, one of them changed by each pass."""

    def __init__(self):
        super().__init__()
        self.gain, self.weight = nn.Parameter(torch.randn(())), nn.Parameter(torch.randn(3, 2))
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("order", torch.randperm(3))
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("shift", torch.rand(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = (x + self.shift)[:, self.order] * self.mask
        return torch.tanh(self.gain * x @ self.weight) + self.calls


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class Words(nn.Module):
    """An embedding, or bags of one, of the tokens 0 to 4 that inputs stand for."""

    def __init__(self, embedding: nn.Module):
        super().__init__()
        self.embedding, self.last = embedding, nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        found = self.embedding(x.mul(3).long().abs() % 5)
        return torch.tanh(self.last(found if found.dim() == 2 else found.mean(1)))


def frozen() -> nn.Module:
    """Of two layers and a norm, the first layer and the norm's gain are constants."""
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 2))
    module[0].requires_grad_(False)
    module.get_parameter("2.weight").requires_grad_(False)
    return module


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 2))


def conv(*layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def factory() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 2, 3),
            *(layer() for layer in layers),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(8, 2),
        )

    return factory


IMAGE, SEQUENCE, TOKENS, VECTOR = (1, 6, 6), (3, 2), (3, 4), (3,)
PLAIN: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv": (conv(), IMAGE),
    "max pool": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()), IMAGE),
    "layer norm": (lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 2)), VECTOR),
    "group norm": (conv(lambda: nn.GroupNorm(1, 2)), IMAGE),
    "gru": (lambda: Recurrent(nn.GRU(2, 3, batch_first=True)), SEQUENCE),
    "deep gru": (lambda: Recurrent(nn.GRU(2, 3, num_layers=2, bidirectional=True)), SEQUENCE),
    "gru without bias": (lambda: Recurrent(nn.GRU(2, 3, bias=False, batch_first=True)), SEQUENCE),
    "lstm": (lambda: Recurrent(nn.LSTM(2, 3, num_layers=2, bidirectional=True, batch_first=True)), SEQUENCE),
    "rnn": (lambda: Recurrent(nn.RNN(2, 3, batch_first=True)), SEQUENCE),
    "relu rnn": (lambda: Recurrent(nn.RNN(2, 3, num_layers=2, nonlinearity="relu")), SEQUENCE),
    "gru cell": (lambda: CellInALoop(nn.GRUCell(2, 3)), SEQUENCE),
    "lstm cell": (lambda: CellInALoop(nn.LSTMCell(2, 3)), SEQUENCE),
    "rnn cell": (lambda: CellInALoop(nn.RNNCell(2, 3, bias=False)), SEQUENCE),
    "attention": (Attention, TOKENS),
    "transformer": (transformer, TOKENS),
    "scalars": (Scalars, VECTOR),
    "tied": (Tied, VECTOR),
    "frozen": (frozen, VECTOR),
    "padding": (lambda: Words(nn.Embedding(5, 3, padding_idx=1)), TOKENS[1:]),
    "bag": (lambda: Words(nn.EmbeddingBag(5, 3, padding_idx=0)), TOKENS[1:]),
    "bag of sums": (lambda: Words(nn.EmbeddingBag(5, 3, mode="sum")), TOKENS[1:]),
    "bag of maxima": (lambda: Words(nn.EmbeddingBag(5, 3, mode="max", padding_idx=-1)), TOKENS[1:]),
}
NORMED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "batch norm": (conv(lambda: nn.BatchNorm2d(2)), IMAGE),
    "batch norm 1d": (lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)), VECTOR),
    "instance norm": (conv(lambda: nn.InstanceNorm2d(2, affine=True, track_running_stats=True)), IMAGE),
}
DROPPING: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dropout": (lambda: nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 2)), VECTOR),
    "dropout 2d": (conv(lambda: nn.Dropout2d(0.5)), IMAGE),
    "attention with dropout": (
        lambda: nn.Sequential(nn.TransformerEncoderLayer(4, 2, 6, 0.3, batch_first=True)),
        TOKENS,
    ),
    "gru with dropout": (lambda: Recurrent(nn.GRU(2, 6, num_layers=2, dropout=0.5)), SEQUENCE),
}
ALL = {**PLAIN, **NORMED, **DROPPING}


def conv_net(channels: int = 2, dropout: float = 0.0, classes: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, channels, 3),
        nn.BatchNorm2d(channels),
        nn.Tanh(),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(16 * channels, classes),
    )
