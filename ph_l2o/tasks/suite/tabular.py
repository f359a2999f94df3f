"""Small networks on scikit-learn's bundled tables."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cached_property
from types import ModuleType

import torch
from torch import Tensor, nn

from ph_l2o.checks import at_least, number, one_of
from ph_l2o.data import split_indices
from ph_l2o.keys import SPLITS, ProblemKeys
from ph_l2o.params import Params
from ph_l2o.tasks import losses
from ph_l2o.tasks.mlp import ACTIVATIONS, MLP
from ph_l2o.tasks.rows import Batch, RowProblem
from ph_l2o.tasks.suite.networks import Perceptron
from ph_l2o.tasks.task import Buffers, Task

CLASSIFICATION = ("digits", "breast_cancer", "wine")
TABLES = (*CLASSIFICATION, "diabetes")
LOSSES = losses.OF_CLASSES | losses.OF_NUMBERS


def bundled(module: str, key: str) -> ModuleType:
    """A module of scikit-learn, whose package holds the data.

    Raises:
        ValueError: If it is not installed, with the command that installs it.
    """
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError:
        raise ValueError(f"{key}: its data come with scikit-learn; `pip install scikit-learn`, or '.[suite]'") from None


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
        trained = len(rows) - task.held_out
        super().__init__(
            keys, lambda: task.make_module(sizes), (x, y), task.batch_size, trained=trained,
            held_out=range(trained, len(rows)), device=device, dtype=dtype,
        )  # fmt: skip
        self._task = task

    def loss(self, params: Params, buffers: Buffers, batch: Batch) -> tuple[Tensor, Buffers]:
        loss, buffers = super().loss(params, buffers, batch)
        if self._task.weight_decay and self.training:
            loss = loss + 0.5 * self._task.weight_decay * params.flat.square().sum(1)
        return loss, buffers

    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return LOSSES[self._task.loss](outputs, targets)


class Tabular(Task):
    """An MLP on a table that comes with scikit-learn; columns are standardised, or not, diabetes' target is.

    Of the shuffled rows a third each is for meta-training, validation and test. The parts are equal because a step size
    that suits few rows, which a model can separate, need not suit more of them.

    Args:
        dataset: `digits` (1,797 rows, 64 columns, 10 classes), `breast_cancer` (569, 30, 2), `wine` (178, 13, 3) or
            `diabetes` (442, 10, a number).
        loss: `cross_entropy`, `smoothed` (labels smoothed by 0.1) or `hinge` for classes; `huber` or `ranking` for
            diabetes.
        hidden_sizes: Units of the hidden layers; none makes a linear model.
        activation: A name of `ph_l2o.tasks.ACTIVATIONS`.
        batch_size: Rows of a mini-batch, >= 1; for the loss `ranking` and for BatchNorm >= 2.
        weight_decay: Factor of ½‖θ‖² in the loss, >= 0; with it, the loss of separable data does not go to 0.
        batch_norm: Whether a BatchNorm with running statistics stands before each activation.
        dropout: Share of units that are dropped after each activation, in [0, 1).
        scaled: Whether columns are standardised, and cut at ± 5; else they are as they came, of sizes 1e-3 to 1e3.
        held_out: Rows of each split that are not trained on, and give `test_loss`, >= 0.
        name: Name in tables.

    Raises:
        ValueError: If an argument is out of range.
    """

    problem_type = TabularProblem

    def __init__(
        self,
        dataset: str = "digits",
        *,
        loss: str = "cross_entropy",
        hidden_sizes: Sequence[int] = (32,),
        activation: str = "relu",
        batch_size: int = 32,
        weight_decay: float = 0.0,
        batch_norm: bool = False,
        dropout: float = 0.0,
        scaled: bool = True,
        held_out: int = 0,
        name: str = "tabular",
    ):
        self.dataset = one_of("task.dataset", dataset, TABLES)
        self.loss = one_of("task.loss", loss, LOSSES)
        fitting = losses.OF_CLASSES if dataset in CLASSIFICATION else losses.OF_NUMBERS
        if loss not in fitting:
            raise ValueError(f"task.loss={loss}: for dataset={dataset} it must be one of {', '.join(fitting)}")
        self.hidden_sizes = tuple(at_least("task.hidden_sizes", n, 1, "units") for n in hidden_sizes)
        self.activation = one_of("task.activation", activation, ACTIVATIONS)
        pairs = batch_norm or loss == "ranking"
        self.batch_size = at_least("task.batch_size", batch_size, 1 + pairs, "rows of a mini-batch")
        if not 0 <= dropout < 1:
            raise ValueError(f"task.dropout={dropout}: must be in [0, 1) (share of units)")
        self.batch_norm, self.dropout, self.scaled = batch_norm, dropout, scaled
        self.held_out = at_least("task.held_out", held_out, 0, "rows that are not trained on")
        self.weight_decay, self.name = number("task.weight_decay", weight_decay, minimum=0), name

    def prepare(self) -> None:
        """Read the table."""
        if self.held_out >= len(self.rows("val")):
            raise ValueError(f"task.held_out={self.held_out}: must be < {len(self.rows('val'))}, the rows of a split")

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor]:
        datasets = bundled("datasets", f"task.dataset={self.dataset}")
        raw = {"scaled": False} if self.dataset == "diabetes" and not self.scaled else {}
        inputs, targets = getattr(datasets, f"load_{self.dataset}")(return_X_y=True, **raw)
        x, y = torch.from_numpy(inputs).double(), torch.from_numpy(targets)
        train = _thirds(len(x))["train"]
        if self.scaled:
            x = ((x - x[train].mean(0)) / x[train].std(0).clamp_min(1e-3)).clamp(-5, 5)
        return x, y if self.dataset in CLASSIFICATION else (y - y[train].mean()) / y[train].std()

    def make_module(self, sizes: Sequence[int]) -> nn.Module:
        """One network, of layers with these numbers of units."""
        if self.batch_norm or self.dropout:
            return Perceptron(sizes, self.activation, batch_norm=self.batch_norm, dropout=self.dropout)
        return MLP(sizes, self.activation)

    def rows(self, split: str) -> Tensor:
        """Numbers of the split's rows."""
        return _thirds(len(self._table[0]))[split]
