"""A labelled image data set held in memory."""

from typing import NamedTuple

from torch import Tensor


class ImageData(NamedTuple):
    """Images and labels of one data set, on the CPU.

    The tensors are shared by all callers in the process: read them, never write to them.

    Attributes:
        train_images: ``(N, C, H, W)`` uint8.
        train_labels: ``(N,)`` int64, in ``[0, num_classes)``.
        test_images: ``(M, C, H, W)`` uint8.
        test_labels: ``(M,)`` int64, in ``[0, num_classes)``.
        num_classes: Number of classes.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    num_classes: int
