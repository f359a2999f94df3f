"""Paired comparisons of optimizers: runs, tuned baselines, statistics, tables and plots."""

from ph_l2o.evaluation.baselines import BASELINES
from ph_l2o.evaluation.comparison import Comparison, compare
from ph_l2o.evaluation.escapes import EscapeMeasurement, measure_escapes
from ph_l2o.evaluation.generalisation import Generalisation, measure_generalisation
from ph_l2o.evaluation.runner import evaluate_optimizer
from ph_l2o.evaluation.sharpness import Sharpness, sharpness
from ph_l2o.evaluation.suite_comparison import SuiteComparison, SuiteTask, compare_suite
from ph_l2o.evaluation.tuning import tune

__all__ = [
    "BASELINES",
    "Comparison",
    "EscapeMeasurement",
    "Generalisation",
    "Sharpness",
    "SuiteComparison",
    "SuiteTask",
    "compare",
    "compare_suite",
    "evaluate_optimizer",
    "measure_escapes",
    "measure_generalisation",
    "sharpness",
    "tune",
]
