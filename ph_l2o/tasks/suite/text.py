"""Language models of characters, on text that comes with Python."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ph_l2o.checks import at_least, one_of
from ph_l2o.keys import ProblemKeys
from ph_l2o.tasks.losses import cross_entropy
from ph_l2o.tasks.rows import Batch, RowProblem
from ph_l2o.tasks.suite.attention import Block
from ph_l2o.tasks.task import Task

NUM_CHARACTERS = 96  # the printable ones of ASCII; the last stands for all others, such as the end of a line
# Modules of Python's library that are long and have no part in this package.
_SOURCES = ("_pydecimal", "difflib", "doctest", "mailbox", "optparse", "pickle", "tarfile")
TEXTS = ("topics", "source")
_PARTS = {"train": (0, 2), "val": (2, 3), "test": (3, 6)}  # in sixths of the text


class Transformer(nn.Module):
    """Tokens `(batch, length)` → logits `(batch, length, NUM_CHARACTERS)`."""

    def __init__(
        self, width: int, depth: int, length: int, heads: int = 4, post_norm: bool = False, zero_branches: bool = False
    ):
        super().__init__()
        self.tokens = nn.Embedding(NUM_CHARACTERS, width)
        self.places = nn.Parameter(0.1 * torch.randn(length, width))
        nn.init.normal_(self.tokens.weight, std=0.1)
        block = functools.partial(Block, width, heads, causal=True, post_norm=post_norm, zero_branches=zero_branches)
        self.blocks = nn.Sequential(*(block() for _ in range(depth)))
        self.norm = nn.Identity() if post_norm else nn.LayerNorm(width)
        self.head = nn.Linear(width, NUM_CHARACTERS)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.places)))


class Recurrent(nn.Module):
    """Tokens `(batch, length)` → logits `(batch, length, NUM_CHARACTERS)` by recurrent layers."""

    def __init__(self, width: int, depth: int, length: int, layers: Callable[..., nn.RNNBase] = nn.LSTM):
        super().__init__()
        del length
        self.tokens = nn.Embedding(NUM_CHARACTERS, width // 2)
        self.layers = layers(width // 2, width, depth, batch_first=True)
        self.head = nn.Linear(width, NUM_CHARACTERS)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layers(self.tokens(tokens))[0])


MODELS = {
    "transformer": Transformer,
    "post_norm_transformer": functools.partial(Transformer, post_norm=True),
    "zero_branch_transformer": functools.partial(Transformer, zero_branches=True),
    "lstm": Recurrent,
    "gru": functools.partial(Recurrent, layers=nn.GRU),
}


class TextProblem(RowProblem):
    """B language models."""

    def __init__(self, task: CharacterText, keys: ProblemKeys, *, device: torch.device | str, dtype: torch.dtype):
        codes = task._codes[task.rows(keys.split)].to(device)
        windows = codes.unfold(0, task.length + 1, 1)  # a view: every window of the split's text
        shown = len(codes) - task.held_out
        super().__init__(
            keys, lambda: MODELS[task.model](task.width, task.depth, task.length), (windows,), task.batch_size,
            trained=shown - task.length, held_out=range(shown, len(windows), task.length),
            device=device, dtype=dtype,
        )  # fmt: skip

    def batch(self, rows: Tensor, step: int) -> Batch:
        (windows,), _, _ = super().batch(rows, step)
        return Batch((windows[..., :-1], windows[..., 1:]))

    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs, targets)


class CharacterText(Task):
    """Predict the next character of a text that comes with Python.

    The first third of the text is for meta-training, the next sixth for validation, the second half for the test.
    The text differs a little between versions of Python; `spec` has its digest.

    Args:
        model: `transformer` (LayerNorm comes first in a block), `post_norm_transformer`, `zero_branch_transformer`,
            `lstm` or `gru`; see `Block`.
        text: `topics`, Python's own reference texts (`pydoc_data.topics`, about 465,000 characters), or `source`, code
            of its library (about 700,000).
        width: Of the model, >= 4; of a transformer, a multiple of 4.
        depth: Number of layers, >= 1.
        length: Characters of a window that are predicted, >= 1.
        batch_size: Windows of a mini-batch, >= 1.
        held_out: Characters at the end of each split's text that are not trained on, and give `test_loss`, >= 0.
        name: Name in tables.

    Raises:
        ValueError: If an argument is out of range, or this Python comes without the text.
    """

    problem_type = TextProblem

    def __init__(
        self,
        model: str = "transformer",
        *,
        text: str = "topics",
        width: int = 64,
        depth: int = 2,
        length: int = 32,
        batch_size: int = 8,
        held_out: int = 0,
        name: str = "text",
    ):
        self.model, self.text = one_of("task.model", model, MODELS), one_of("task.text", text, TEXTS)
        self.width = at_least("task.width", width, 4, "of the model")
        if model.endswith("transformer") and width % 4:
            raise ValueError(f"task.width={width}: must be a multiple of 4 (heads of the transformer)")
        self.depth = at_least("task.depth", depth, 1, "layers")
        self.length = at_least("task.length", length, 1, "characters of a window")
        self.batch_size, self.name = at_least("task.batch_size", batch_size, 1, "windows of a mini-batch"), name
        self.held_out = at_least("task.held_out", held_out, 0, "characters that are not trained on")

    def prepare(self) -> None:
        """Read the text."""
        shortest = len(self.rows("val"))
        if self.held_out + self.length >= shortest:
            raise ValueError(f"task.held_out={self.held_out}: must be < {shortest - self.length} (of the text)")

    def spec(self) -> dict[str, Any]:
        """What defines the distribution, with a digest of the text."""
        return super().spec() | {"digest": hashlib.sha256(self._codes.numpy().tobytes()).hexdigest()[:16]}

    @cached_property
    def _codes(self) -> Tensor:
        try:
            text = _topics() if self.text == "topics" else _source()
        except (ImportError, OSError, TypeError):
            raise ValueError(
                f"task.text={self.text}: comes with Python's full standard library, which this Python lacks; install "
                "it, or leave out the tasks of text"
            ) from None
        codes = torch.tensor(list(text.encode("ascii", "replace")), dtype=torch.int64) - 32
        return torch.where((codes >= 0) & (codes < NUM_CHARACTERS - 1), codes, NUM_CHARACTERS - 1)

    def rows(self, split: str) -> Tensor:
        """Places in the text that windows of the split are made of."""
        first, last = (len(self._codes) * part // 6 for part in _PARTS[split])
        return torch.arange(first, last)


def _topics() -> str:
    topics = importlib.import_module("pydoc_data.topics").topics
    return "\n".join(topics[name] for name in sorted(topics))


def _source() -> str:
    specs = [importlib.util.find_spec(name) for name in _SOURCES]
    return "\n".join(Path(spec.origin).read_text("utf-8") for spec in specs)  # type: ignore[union-attr,arg-type]
