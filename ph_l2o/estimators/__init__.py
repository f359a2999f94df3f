"""Meta-gradient estimators and the objectives they estimate the gradient of."""

from collections.abc import Callable

from ph_l2o.estimators.es import ES
from ph_l2o.estimators.es_single import ESSingle
from ph_l2o.estimators.estimator import Estimate, Estimator
from ph_l2o.estimators.forward import Forward
from ph_l2o.estimators.full import Full
from ph_l2o.estimators.nres import NRES
from ph_l2o.estimators.objectives import OBJECTIVES
from ph_l2o.estimators.pes import PES
from ph_l2o.estimators.truncated import Truncated

ESTIMATORS: dict[str, Callable[..., Estimator]] = {
    "truncated": Truncated,
    "full": Full,
    "forward": Forward,
    "es": ES,
    "pes": PES,
    "es_single": ESSingle,
    "nres": NRES,
}

__all__ = [
    "ES",
    "ESTIMATORS",
    "NRES",
    "OBJECTIVES",
    "PES",
    "ESSingle",
    "Estimate",
    "Estimator",
    "Forward",
    "Full",
    "Truncated",
]
