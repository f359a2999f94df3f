"""CIFAR-10 and CIFAR-100: pickled batches, which torchvision reads once their md5 sums are known to be right."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ph_l2o.data.registry import ImageData, register_dataset
from ph_l2o.data.torchvision_files import check_md5, download, quiet


def _register(name: str, class_name: str, files: list[str]) -> None:
    sources = {"torchvision's download": functools.partial(download, class_name)}

    @register_dataset(name, files=files, sources=sources)
    def read(root: Path) -> ImageData:
        from torchvision import datasets

        cls = getattr(datasets, class_name)
        for file, md5 in [*cls.train_list, *cls.test_list, (cls.meta["filename"], cls.meta["md5"])]:
            check_md5(root / cls.base_folder / file, md5)  # a pickle can run code: nothing unknown is opened
        with quiet():
            train, test = (cls(str(root), train=part) for part in (True, False))
        return ImageData(*_tensors(train), *_tensors(test), num_classes=len(train.classes))


def _tensors(part: Any) -> tuple[Tensor, Tensor]:
    images = np.ascontiguousarray(part.data.transpose(0, 3, 1, 2))  # torchvision has channels last
    return torch.from_numpy(images), torch.tensor(part.targets)


_BATCHES = [f"data_batch_{number}" for number in range(1, 6)]
_register("cifar10", "CIFAR10", [f"cifar-10-batches-py/{file}" for file in (*_BATCHES, "test_batch", "batches.meta")])
_register("cifar100", "CIFAR100", [f"cifar-100-python/{file}" for file in ("train", "test", "meta")])
