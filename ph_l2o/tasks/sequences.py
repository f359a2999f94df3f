"""Synthetic sequences for small recurrent and attention networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ph_l2o.checks import at_least, number, one_of
from ph_l2o.keys import ProblemKeys, Purpose, integers, uniforms
from ph_l2o.params import Params
from ph_l2o.tasks.factory import checked_factory, described
from ph_l2o.tasks.losses import negative_log_likelihood
from ph_l2o.tasks.models import RecurrentNet
from ph_l2o.tasks.module import ModuleProblem, checked_init_scale
from ph_l2o.tasks.task import Buffers, StochasticProblem, Task

KINDS = ("markov", "copy", "modular", "adding")
Batch = tuple[Tensor, Tensor]  # inputs (B, batch, time, features), targets (B, batch, time), symbols or numbers


class SequenceProblem(StochasticProblem, ModuleProblem):
    """B networks with sequences of their own."""

    def __init__(self, task: Sequences, keys: ProblemKeys, *, device: torch.device | str, dtype: torch.dtype):
        super().__init__(keys, lambda: task.model(*task.sizes), device=device, dtype=dtype)
        self.scale_weights(task.init_scale)
        self._task = task
        # (B, symbols, symbols): where the intervals of the next symbol end, for each present one.
        alphas = np.full(task.symbols, task.concentration)
        rows = [keys.generator(Purpose.NOISE, i).dirichlet(alphas, task.symbols) for i in keys.indices]
        self._edges = np.cumsum(np.stack(rows), -1)

    def draw(self, purpose: Purpose, first: int, count: int) -> Iterator[Batch]:
        task = self._task
        times = task.length + 1 + (task.kind == "adding")  # `adding` needs two places, a chain its last symbol
        words = self.keys.words(purpose, first, count, task.batch_size * times)
        words = words.reshape(count, self.num_problems, task.batch_size, times)
        make = {"markov": self._chain, "copy": self._copy, "modular": self._modular, "adding": self._adding}
        for inputs, targets in zip(*make[task.kind](words), strict=True):
            x, y = torch.from_numpy(inputs).to(self._device), torch.from_numpy(targets).to(self._device)
            if task.kind == "adding":
                yield x.to(self._dtype), y.to(self._dtype)
            else:
                yield (x[..., None] == torch.arange(task.symbols, device=x.device)).to(self._dtype), y

    # Each makes inputs and targets of words `(count, B, batch, times)`; a target of -1 does not count.

    def _chain(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        problem = np.arange(self.num_problems)[:, None]
        states = np.empty(words.shape, dtype=np.int64)
        states[..., 0] = integers(words[..., 0], self._task.symbols)
        for t in range(1, words.shape[-1]):
            edges = self._edges[problem, states[..., t - 1]]  # (count, B, batch, symbols)
            states[..., t] = (uniforms(words[..., t, None]) >= edges[..., :-1]).sum(-1)
        return states[..., :-1], states[..., 1:]

    def _copy(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        symbols, delay = integers(words[..., :-1], self._task.symbols), self._task.delay
        targets = np.full_like(symbols, -1)
        targets[..., delay:] = symbols[..., :-delay]
        return symbols, targets

    def _modular(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        symbols = integers(words[..., :-1], self._task.symbols)
        return symbols, np.cumsum(symbols, -1) % self._task.symbols

    def _adding(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        length = self._task.length
        numbers = uniforms(words[..., :length])
        one = integers(words[..., length], length)
        two = (one + 1 + integers(words[..., length + 1], length - 1)) % length
        marks = (np.arange(length) == one[..., None]) | (np.arange(length) == two[..., None])
        targets = np.broadcast_to((numbers * marks).sum(-1, keepdims=True), numbers.shape)
        return np.stack([numbers, marks.astype(np.float64)], -1), np.ascontiguousarray(targets)

    def loss(self, params: Params, buffers: Buffers, batch: Batch) -> tuple[Tensor, Buffers]:
        (inputs, targets), task = batch, self._task
        outputs, buffers = self.outputs(params, buffers, inputs)
        if outputs.shape != (*targets.shape, task.sizes[1]):
            raise ValueError(
                f"task.model={type(self._module).__name__}: its outputs have shape {tuple(outputs.shape[1:])}; must be "
                f"{(*targets.shape[1:], task.sizes[1])}"
            )
        if task.kind == "adding":
            return (outputs[:, :, -1, 0] - targets[:, :, -1]).square().mean(1), buffers
        if task.kind == "copy":
            outputs, targets = outputs[:, :, task.delay :], targets[:, :, task.delay :]
        return negative_log_likelihood(outputs, targets), buffers


class Sequences(Task):
    """A network reads a sequence, and says something at each time. Each step draws fresh sequences.

    - `markov`: the next symbol of a Markov chain, whose transition matrix differs between problems.
    - `copy`: the symbol of `delay` times ago.
    - `modular`: the sum of the symbols so far, modulo their number.
    - `adding`: at the last time, the sum of the two marked ones of a sequence of U(0, 1) numbers.

    The loss is the mean cross-entropy, for `adding` the mean squared error.

    Args:
        kind: One of these.
        model: Makes a module of (inputs, outputs, length), from `(batch, time, inputs)` to `(batch, time, outputs)`:
            `ph_l2o.tasks.models.RecurrentNet`, `CausalAttention`, or your own. Inputs are symbols in one-hot form, or
            the number and its mark.
        symbols: Number of symbols, >= 2.
        length: Times of a sequence, >= 2.
        delay: Of `copy`, in [1, length - 1].
        concentration: Of the Dirichlet distribution of the chain's transitions, > 0: the smaller, the more certain.
        batch_size: Sequences of a mini-batch, >= 1.
        init_scale: Factor of the initial weights, or (low, high) for a log-uniform draw for each problem; > 0.
        name: Name in tables and folders; the default is the kind.

    Raises:
        ValueError: If an argument is out of range.

    Reference: Hochreiter and Schmidhuber 1997, "Long short-term memory", for `adding`.
    """

    problem_type = SequenceProblem

    def __init__(
        self,
        kind: str = "markov",
        *,
        model: Callable[[int, int, int], nn.Module] = RecurrentNet,
        symbols: int = 8,
        length: int = 10,
        delay: int = 3,
        concentration: float = 0.2,
        batch_size: int = 16,
        init_scale: float | Sequence[float] = 1.0,
        name: str | None = None,
    ):
        self.kind, self.model = one_of("task.kind", kind, KINDS), checked_factory(model)
        self.symbols = at_least("task.symbols", symbols, 2, "different ones")
        self.length = at_least("task.length", length, 2, "times of a sequence")
        self.batch_size = at_least("task.batch_size", batch_size, 1, "sequences of a mini-batch")
        if kind == "copy" and (not isinstance(delay, int) or not 1 <= delay < length):
            raise ValueError(f"task.delay={delay}: must be a whole number in [1, {length - 1}], below the length")
        self.concentration = number("task.concentration", concentration, above=0)
        self.delay, self.name = delay, kind if name is None else name
        self.init_scale = checked_init_scale(init_scale)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Inputs, outputs and times of the network."""
        return (2, 1, self.length) if self.kind == "adding" else (self.symbols, self.symbols, self.length)

    def spec(self) -> dict[str, Any]:
        """What defines the distribution; of `model`, all that can be seen from the modules it makes."""
        return super().spec() | {"model": described(self.model, *self.sizes)}
