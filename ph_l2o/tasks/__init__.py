"""What is optimised: distributions of problems."""

from ph_l2o.tasks.base import Problem, Task
from ph_l2o.tasks.images import ImageClassification
from ph_l2o.tasks.mlp import ACTIVATIONS, MLP
from ph_l2o.tasks.module import ModuleProblem
from ph_l2o.tasks.quadratic import Quadratic, QuadraticProblem
from ph_l2o.tasks.rescaled import rescaled

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "ImageClassification",
    "ModuleProblem",
    "Problem",
    "Quadratic",
    "QuadraticProblem",
    "Task",
    "rescaled",
]
