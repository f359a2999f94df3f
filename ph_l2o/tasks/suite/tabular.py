"""Small networks on scikit-learn's bundled tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from ph_l2o.data import split_indices
from ph_l2o.keys import SPLITS, ProblemKeys
from ph_l2o.params import Params
from ph_l2o.tasks.mlp import ACTIVATIONS, MLP
from ph_l2o.tasks.suite.rows import Batch, RowProblem, at_least, bundled, cross_entropy, one_of
from ph_l2o.tasks.task import Buffers, Task

CLASSIFICATION = ("digits", "breast_cancer", "wine")
DATASETS = (*CLASSIFICATION, "diabetes")
_SMOOTHING = 0.1


def huber(outputs: Tensor, targets: Tensor) -> Tensor:
    """Quadratic up to a deviation of 1, linear beyond it (Huber 1964)."""
    size = (outputs[..., 0] - targets).abs()
    return torch.where(size < 1, 0.5 * size.square(), size - 0.5).mean(1)


def hinge(logits: Tensor, labels: Tensor) -> Tensor:
    """Squared margin violations of all other classes, (1 - z_y + z_j)₊² (Weston and Watkins 1999)."""
    chosen = labels[..., None] == torch.arange(logits.shape[-1], device=labels.device)
    own = (logits * chosen).sum(-1, keepdim=True)
    return ((1 - own + logits).clamp_min(0).square() * ~chosen).sum(-1).mean(1)


def smoothed(logits: Tensor, labels: Tensor) -> Tensor:
    """Kullback-Leibler divergence from labels smoothed by 0.1: their cross-entropy, less the least it can be."""
    other = _SMOOTHING / logits.shape[-1]
    own = 1 - _SMOOTHING + other
    entropy = -own * math.log(own) - (logits.shape[-1] - 1) * other * math.log(other)
    return cross_entropy(logits, labels, _SMOOTHING) - entropy


def ranking(outputs: Tensor, targets: Tensor) -> Tensor:
    """Logistic loss of all pairs of the batch that are out of order (Burges et al. 2005)."""
    scores = outputs[..., 0]
    order = torch.sign(targets[:, :, None] - targets[:, None, :])
    pairs = torch.nn.functional.softplus(-order * (scores[:, :, None] - scores[:, None, :])) * (order != 0)
    return pairs.sum((1, 2)) / (order != 0).sum((1, 2)).clamp_min(1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": cross_entropy,
    "smoothed": smoothed,
    "hinge": hinge,
    "huber": huber,
    "ranking": ranking,
}
_OF_NUMBERS = ("huber", "ranking")


class Tabular(Task):
    """An MLP on a table that comes with scikit-learn; columns are standardised, diabetes' target too.

    Of the shuffled rows a third each is for meta-training, validation and test. The parts are equal because a step size
    that suits few rows, which a model can separate, need not suit more of them.

    Args:
        dataset: `digits` (1,797 rows, 64 columns, 10 classes), `breast_cancer` (569, 30, 2), `wine` (178, 13, 3) or
            `diabetes` (442, 10, a number).
        loss: `cross_entropy`, `smoothed` (labels smoothed by 0.1) or `hinge` for classes; `huber` or `ranking` for
            diabetes.
        hidden_sizes: Units of the hidden layers; none makes a linear model.
        activation: A name of `ph_l2o.tasks.ACTIVATIONS`.
        batch_size: Rows of a mini-batch, >= 2.
        weight_decay: Factor of ½‖θ‖² in the loss, >= 0; with it, the loss of separable data does not go to 0.
        name: Name in tables.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        dataset: str = "digits",
        *,
        loss: str = "cross_entropy",
        hidden_sizes: Sequence[int] = (32,),
        activation: str = "relu",
        batch_size: int = 32,
        weight_decay: float = 0.0,
        name: str = "tabular",
    ):
        self.dataset, self.loss = one_of("dataset", dataset, DATASETS), one_of("loss", loss, tuple(LOSSES))
        if (dataset in CLASSIFICATION) == (loss in _OF_NUMBERS):
            fitting = [k for k in LOSSES if (k in _OF_NUMBERS) == (dataset not in CLASSIFICATION)]
            raise ValueError(f"task.loss={loss}: for dataset={dataset} it must be of {', '.join(fitting)}")
        self.hidden_sizes = tuple(at_least("hidden_sizes", n, 1, "units") for n in hidden_sizes)
        self.activation = one_of("activation", activation, tuple(ACTIVATIONS))
        self.batch_size = at_least("batch_size", batch_size, 2, "rows of a mini-batch")
        if weight_decay < 0:
            raise ValueError(f"task.weight_decay={weight_decay}: must be >= 0")
        self.weight_decay, self.name = weight_decay, name

    def prepare(self) -> None:
        """Read the table."""
        _ = self._table

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor]:
        datasets = bundled("datasets", f"task.dataset={self.dataset}")
        inputs, targets = getattr(datasets, f"load_{self.dataset}")(return_X_y=True)
        x, y = torch.from_numpy(inputs).double(), torch.from_numpy(targets)
        train = _thirds(len(x))["train"]
        x = (x - x[train].mean(0)) / x[train].std(0).clamp_min(1e-3)
        return x.clamp(-5, 5), y if self.dataset in CLASSIFICATION else (y - y[train].mean()) / y[train].std()

    def rows(self, split: str) -> Tensor:
        """Numbers of the split's rows."""
        return _thirds(len(self._table[0]))[split]

    def sample(
        self, keys: ProblemKeys, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> TabularProblem:
        """Draw networks; see `Task.sample`."""
        return TabularProblem(self, keys, device=device, dtype=dtype)


def _thirds(num_rows: int) -> dict[str, Tensor]:
    shuffled = torch.cat([split_indices(num_rows, split) for split in SPLITS])
    return dict(zip(SPLITS, shuffled[: num_rows // 3 * 3].chunk(3), strict=True))


class TabularProblem(RowProblem):
    """B networks on a table."""

    def __init__(self, task: Tabular, keys: ProblemKeys, *, device: torch.device | str, dtype: torch.dtype):
        rows = task.rows(keys.split)
        x, y = (t[rows].to(device) for t in task._table)
        x, y = x.to(dtype), y.to(dtype) if y.is_floating_point() else y
        outputs = 1 if y.is_floating_point() else int(task._table[1].max()) + 1
        sizes = [x.shape[1], *task.hidden_sizes, outputs]
        super().__init__(keys, lambda: MLP(sizes, task.activation), (x, y), task.batch_size, device=device, dtype=dtype)
        self._task = task

    def loss(self, params: Params, buffers: Buffers, batch: Batch) -> tuple[Tensor, Buffers]:
        loss, buffers = super().loss(params, buffers, batch)
        if self._task.weight_decay:
            loss = loss + 0.5 * self._task.weight_decay * params.flat.square().sum(1)
        return loss, buffers

    def criterion(self, outputs: Tensor, batch: Batch) -> Tensor:
        return LOSSES[self._task.loss](outputs, batch.rows[1])
