"""Meta-training: the Lightning module, its settings, and the same without Hydra."""

from ph_l2o.errors import NonFiniteError, ProcessError
from ph_l2o.meta.fit import check_trainer, fit, meta_train
from ph_l2o.meta.learner import MetaLearner
from ph_l2o.meta.metrics_csv import MetricsCSV
from ph_l2o.meta.processes import ProblemSharing
from ph_l2o.meta.progress import MetaProgress
from ph_l2o.meta.settings import MetaSettings
from ph_l2o.meta.wandb_run import WandbRun, wandb_logger

__all__ = [
    "MetaLearner",
    "MetaProgress",
    "MetaSettings",
    "MetricsCSV",
    "NonFiniteError",
    "ProblemSharing",
    "ProcessError",
    "WandbRun",
    "check_trainer",
    "fit",
    "meta_train",
    "wandb_logger",
]
