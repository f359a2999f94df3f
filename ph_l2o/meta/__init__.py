"""Meta-training: the Lightning module, its settings, and the same without Hydra."""

from ph_l2o.errors import NonFiniteError, ProcessError
from ph_l2o.meta.fit import fit, meta_train
from ph_l2o.meta.learner import MetaLearner
from ph_l2o.meta.processes import ProblemSharing
from ph_l2o.meta.progress import MetaProgress
from ph_l2o.meta.settings import MetaSettings

__all__ = [
    "MetaLearner",
    "MetaProgress",
    "MetaSettings",
    "NonFiniteError",
    "ProblemSharing",
    "ProcessError",
    "fit",
    "meta_train",
]
