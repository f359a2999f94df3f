"""Real data sets: find, fetch, verify, split."""

from ph_l2o.data.datasets import DATASETS, load_images
from ph_l2o.data.images import ImageData
from ph_l2o.data.splits import split_indices
from ph_l2o.errors import DataError

__all__ = ["DATASETS", "DataError", "ImageData", "load_images", "split_indices"]
