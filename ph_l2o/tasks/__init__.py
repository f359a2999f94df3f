"""What is optimised: distributions of problems."""

from ph_l2o.tasks.autoencoder import Autoencoder
from ph_l2o.tasks.batched import BatchedModule
from ph_l2o.tasks.images import ImageClassification
from ph_l2o.tasks.landscape import Landscape
from ph_l2o.tasks.logistic import LogisticRegression
from ph_l2o.tasks.mixture import Mixture
from ph_l2o.tasks.mlp import ACTIVATIONS, MLP
from ph_l2o.tasks.models import CausalAttention, ConvNet, RecurrentNet
from ph_l2o.tasks.module import ModuleProblem
from ph_l2o.tasks.quadratic import Quadratic, QuadraticProblem
from ph_l2o.tasks.rescaled import rescaled
from ph_l2o.tasks.saddles import Saddle, SaddleProblem
from ph_l2o.tasks.sequences import Sequences
from ph_l2o.tasks.task import Problem, StochasticProblem, Task
from ph_l2o.tasks.teacher import TeacherRegression

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "Autoencoder",
    "BatchedModule",
    "CausalAttention",
    "ConvNet",
    "ImageClassification",
    "Landscape",
    "LogisticRegression",
    "Mixture",
    "ModuleProblem",
    "Problem",
    "Quadratic",
    "QuadraticProblem",
    "RecurrentNet",
    "Saddle",
    "SaddleProblem",
    "Sequences",
    "StochasticProblem",
    "Task",
    "TeacherRegression",
    "rescaled",
]
