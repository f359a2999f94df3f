"""Contrastive learning of an embedding."""

from __future__ import annotations

import torch
from torch import Tensor

from ph_l2o.checks import at_least, number
from ph_l2o.keys import ProblemKeys
from ph_l2o.params import Params
from ph_l2o.tasks.mlp import MLP
from ph_l2o.tasks.rows import Batch, RowProblem
from ph_l2o.tasks.suite.tabular import Tabular
from ph_l2o.tasks.task import Buffers


class ContrastiveProblem(RowProblem):
    """B embeddings of the rows of a table."""

    def __init__(self, task: Contrastive, keys: ProblemKeys, *, device: torch.device | str, dtype: torch.dtype):
        x = task._table[0][task.rows(keys.split)].to(device=device, dtype=dtype)
        columns = x.shape[1]
        super().__init__(
            keys, lambda: MLP([columns, task.width, task.width], "relu"), (x,), task.batch_size,
            noise=2 * columns, device=device, dtype=dtype,
        )  # fmt: skip
        self._task = task

    def loss(self, params: Params, buffers: Buffers, batch: Batch) -> tuple[Tensor, Buffers]:
        (x,), noise, _ = batch
        assert noise is not None
        views = torch.cat([x + self._task.noise * part for part in noise.chunk(2, -1)], 1)
        outputs, buffers = self.outputs(params, buffers, views)
        # The constant keeps the second derivative finite at an embedding of 0.
        unit = outputs / (outputs.square().sum(-1, keepdim=True) + 1e-6).sqrt()
        first, second = unit.chunk(2, 1)
        logs = (first @ second.mT / self._task.temperature).log_softmax(-1)
        return -logs.diagonal(dim1=1, dim2=2).mean(1), buffers


class Contrastive(Tabular):
    """Find a row's other view among those of the batch, by the cosine of the embeddings (InfoNCE).

    A view is a row plus normal noise, which is drawn anew in each step.

    Args:
        dataset: A name of `Tabular`'s data sets; targets are not used.
        width: Units of the hidden layer and of the embedding, >= 1.
        batch_size: Rows of a mini-batch, >= 2.
        noise: Standard deviation of the noise, in those of the columns, >= 0.
        temperature: Of the softmax over cosines, > 0.
        name: Name in tables.

    Raises:
        ValueError: If an argument is out of range.

    Reference: van den Oord et al. 2018; Chen et al. 2020, section 2.1.
    """

    problem_type = ContrastiveProblem

    def __init__(
        self,
        dataset: str = "digits",
        *,
        width: int = 64,
        batch_size: int = 64,
        noise: float = 0.5,
        temperature: float = 0.2,
        name: str = "contrastive",
    ):
        loss = "huber" if dataset == "diabetes" else "cross_entropy"
        at_least("task.batch_size", batch_size, 2, "rows of a mini-batch")
        super().__init__(dataset, loss=loss, hidden_sizes=(width,), batch_size=batch_size, name=name)
        self.width = at_least("task.width", width, 1, "units")
        self.noise = number("task.noise", noise, minimum=0, meaning="standard deviation")
        self.temperature = number("task.temperature", temperature, above=0)
