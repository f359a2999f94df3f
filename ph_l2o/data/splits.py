"""Which images meta-training, meta-validation and meta-testing may use."""

from typing import Literal

import torch
from torch import Tensor

SHUFFLE_SEED = 10
MIN_IMAGES = 6  # so that no part is empty


def split_indices(
    num_images: int,
    split: Literal["train", "val", "test"],
    scheme: Literal["default", "study"] = "default",
) -> Tensor:
    """Indices `(n,)`, int64, of the training images that belong to one split, in a fixed shuffled order.

    The shuffle is `torch.randperm` with seed 10, the published study's own.

    - `default`: the first third is train, the next sixth val, the last half test; no image is in two of them.
    - `study`: the published halves. The first half is both train and val, the second half test. The study chose its
      networks on the test half. We never do: `val` here is the first half, so selection sees training images, and
      figures on `test` stay honest.

    Args:
        num_images: Number of training images, at least 6.
        split: The split.
        scheme: The scheme.

    Raises:
        ValueError: An argument is out of range.

    >>> [len(split_indices(60_000, split)) for split in ("train", "val", "test")]
    [20000, 10000, 30000]
    """
    if num_images < MIN_IMAGES:
        raise ValueError(f"num_images={num_images}: must be >= {MIN_IMAGES}")
    half = num_images // 2
    third = (2 * num_images + 3) // 6  # rounded to the nearest
    parts = {
        "default": {"train": (0, third), "val": (third, half), "test": (half, num_images)},
        "study": {"train": (0, half), "val": (0, half), "test": (half, num_images)},
    }
    if scheme not in parts:
        raise ValueError(f"scheme={scheme!r}: must be one of {', '.join(parts)}")
    if split not in parts[scheme]:
        raise ValueError(f"split={split!r}: must be one of {', '.join(parts[scheme])}")
    start, stop = parts[scheme][split]
    generator = torch.Generator().manual_seed(SHUFFLE_SEED)
    return torch.randperm(num_images, generator=generator, device="cpu")[start:stop].clone()
