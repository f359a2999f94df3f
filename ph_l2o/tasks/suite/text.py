"""Language models of characters, on English text that comes with Python."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ph_l2o.checks import at_least, one_of
from ph_l2o.keys import ProblemKeys
from ph_l2o.tasks.losses import cross_entropy
from ph_l2o.tasks.rows import Batch, RowProblem
from ph_l2o.tasks.task import Task

NUM_CHARACTERS = 96  # the printable ones of ASCII; the last stands for all others, such as the end of a line
_PARTS = {"train": (0, 2), "val": (2, 3), "test": (3, 6)}  # in sixths of the text


class _Block(nn.Module):
    """Causal attention and a perceptron, each after a LayerNorm and beside a shortcut."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.merge = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.merge(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.contract(F.gelu(self.expand(self.norm2(x))))


class Transformer(nn.Module):
    """Tokens `(batch, length)` → logits `(batch, length, NUM_CHARACTERS)`; LayerNorm comes first in a block.

    Reference: Radford et al. 2019, section 2.3.
    """

    def __init__(self, width: int, depth: int, length: int, heads: int = 4):
        super().__init__()
        self.tokens = nn.Embedding(NUM_CHARACTERS, width)
        self.places = nn.Parameter(0.1 * torch.randn(length, width))
        nn.init.normal_(self.tokens.weight, std=0.1)
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, NUM_CHARACTERS)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.places)))


class Recurrent(nn.Module):
    """Tokens `(batch, length)` → logits `(batch, length, NUM_CHARACTERS)` by LSTM layers."""

    def __init__(self, width: int, depth: int, length: int):
        super().__init__()
        del length
        self.tokens = nn.Embedding(NUM_CHARACTERS, width // 2)
        self.layers = nn.LSTM(width // 2, width, depth, batch_first=True)
        self.head = nn.Linear(width, NUM_CHARACTERS)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layers(self.tokens(tokens))[0])


MODELS = {"transformer": Transformer, "lstm": Recurrent}


class TextProblem(RowProblem):
    """B language models."""

    def __init__(self, task: CharacterText, keys: ProblemKeys, *, device: torch.device | str, dtype: torch.dtype):
        codes = task._codes[task.rows(keys.split)].to(device)
        windows = codes.unfold(0, task.length + 1, 1)  # a view: every window of the split's text
        super().__init__(
            keys, lambda: MODELS[task.model](task.width, task.depth, task.length), (windows,), task.batch_size,
            device=device, dtype=dtype,
        )  # fmt: skip

    def batch(self, rows: Tensor, step: int) -> Batch:
        (windows,), _ = super().batch(rows, step)
        return Batch((windows[..., :-1], windows[..., 1:]), None)

    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs, targets)


class CharacterText(Task):
    """Predict the next character of Python's own reference texts (`pydoc_data.topics`, about 465,000 characters).

    The first third of the text is for meta-training, the next sixth for validation, the second half for the test.
    The text differs a little between versions of Python; `spec` has its digest.

    Args:
        model: `transformer` or `lstm`.
        width: Of the model, >= 4; of a transformer, a multiple of 4.
        depth: Number of layers, >= 1.
        length: Characters of a window that are predicted, >= 1.
        batch_size: Windows of a mini-batch, >= 1.
        name: Name in tables.

    Raises:
        ValueError: If an argument is out of range, or this Python comes without the text.
    """

    problem_type = TextProblem

    def __init__(
        self,
        model: str = "transformer",
        *,
        width: int = 64,
        depth: int = 2,
        length: int = 32,
        batch_size: int = 8,
        name: str = "text",
    ):
        self.model = one_of("task.model", model, MODELS)
        self.width = at_least("task.width", width, 4, "of the model")
        if model == "transformer" and width % 4:
            raise ValueError(f"task.width={width}: must be a multiple of 4 (heads of the transformer)")
        self.depth = at_least("task.depth", depth, 1, "layers")
        self.length = at_least("task.length", length, 1, "characters of a window")
        self.batch_size, self.name = at_least("task.batch_size", batch_size, 1, "windows of a mini-batch"), name

    def prepare(self) -> None:
        """Read the text."""
        _ = self._codes

    def spec(self) -> dict[str, Any]:
        """What defines the distribution, with a digest of the text."""
        return super().spec() | {"text": hashlib.sha256(self._codes.numpy().tobytes()).hexdigest()[:16]}

    @cached_property
    def _codes(self) -> Tensor:
        try:
            from pydoc_data.topics import topics
        except ImportError:
            raise ValueError(
                f"task.model={self.model}: the text is Python's own pydoc_data.topics, which this Python lacks; "
                "install Python's full standard library, or leave out the tasks of text"
            ) from None
        text = "\n".join(topics[name] for name in sorted(topics))
        codes = torch.tensor(list(text.encode("ascii", "replace")), dtype=torch.int64) - 32
        return torch.where((codes >= 0) & (codes < NUM_CHARACTERS - 1), codes, NUM_CHARACTERS - 1)

    def rows(self, split: str) -> Tensor:
        """Places in the text that windows of the split are made of."""
        first, last = (len(self._codes) * part // 6 for part in _PARTS[split])
        return torch.arange(first, last)
