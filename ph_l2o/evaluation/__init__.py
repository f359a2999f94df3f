"""Paired comparisons of optimizers: runs, tuned baselines, statistics, tables and plots."""

from ph_l2o.evaluation.comparison import Comparison, compare
from ph_l2o.evaluation.runner import evaluate_optimizer
from ph_l2o.evaluation.tuning import BASELINES, tune

__all__ = ["BASELINES", "Comparison", "compare", "evaluate_optimizer", "tune"]
