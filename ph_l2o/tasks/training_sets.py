"""What each problem is trained on: some of the rows of a split, with some of their labels wrong."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ph_l2o.keys import ProblemKeys, Purpose


class TrainingSets(NamedTuple):
    """The examples of B problems, n each.

    Attributes:
        rows: Rows of the split, `(B, n)`, int64.
        labels: Their labels, `(B, n)`, int64.
    """

    rows: Tensor
    labels: Tensor


def checked_label_noise(share: float) -> float:
    """The share of labels that are wrong.

    Raises:
        ValueError: If it is out of range.
    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise ValueError(f"task.label_noise={share}: must be in [0, 1] (share of the training labels that are wrong)")
    return float(share)


def draw_training_sets(
    keys: ProblemKeys, labels: Tensor, *, size: int | None, label_noise: float, num_classes: int
) -> TrainingSets:
    """A training set for each problem, a function of its key alone; the larger ones contain the smaller ones.

    Args:
        keys: Of the problems.
        labels: Right labels of all rows of the split, `(rows,)`, int64.
        size: Rows of a set, drawn without replacement; None: all, in their order.
        label_noise: Share of the labels, rounded to whole ones, that are replaced by a random other class.
        num_classes: Number of classes, at least 2 where labels are replaced.
    """
    count = len(labels)
    drawn = {i: _rows(keys, i, count, size) for i in set(keys.indices)}
    rows = torch.from_numpy(np.stack([drawn[i] for i in keys.indices])).to(labels.device)
    wrong = {i: _shifts(keys, i, rows.shape[1], label_noise, num_classes) for i in set(keys.indices)}
    shifts = torch.from_numpy(np.stack([wrong[i] for i in keys.indices])).to(labels.device)
    return TrainingSets(rows, (labels[rows] + shifts) % num_classes)


def _rows(keys: ProblemKeys, index: int, count: int, size: int | None) -> np.ndarray:
    if size is None:
        return np.arange(count)
    return keys.generator(Purpose.TRAINING_SET, index).permutation(count)[:size]


def _shifts(keys: ProblemKeys, index: int, size: int, share: float, num_classes: int) -> np.ndarray:
    """What is added to each label: 0, or for the wrong ones 1 … K - 1."""
    shifts = np.zeros(size, dtype=np.int64)
    number = round(share * size)
    if number:
        generator = keys.generator(Purpose.LABEL_NOISE, index)
        shifts[generator.permutation(size)[:number]] = generator.integers(1, num_classes, size=number)
    return shifts
