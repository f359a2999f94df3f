"""Image data sets: fetched once, verified, split. A file here that registers one is found by itself."""

import importlib
import pkgutil

from ph_l2o.data.registry import DATASETS, ImageData, load_images, register_dataset
from ph_l2o.data.splits import split_indices
from ph_l2o.errors import DataError

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["DATASETS", "DataError", "ImageData", "load_images", "register_dataset", "split_indices"]
