"""Meta-gradient estimators and the objectives they estimate the gradient of."""

from ph_l2o.estimators.base import Estimate, Estimator
from ph_l2o.estimators.objectives import OBJECTIVES
from ph_l2o.estimators.truncated import Truncated

__all__ = ["OBJECTIVES", "Estimate", "Estimator", "Truncated"]
